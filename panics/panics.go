// Package panics turns a panic into an error that says where it happened. The error holds nothing of
// what was being handled: the value of a panic may quote an event or a secret, so only its type is
// kept, or its text where that is the runtime's own.
package panics

import (
	"fmt"
	"path"
	"runtime"
	"strings"
)

// maxFrames bounds Error.Stack.
const maxFrames = 12

// Error is a panic that was caught.
type Error struct {
	What  string // the runtime's text, or the type of the value
	Place string // the file and line of the frame that panicked, such as agent/match.go:123
	Stack string // the innermost frames, one in a line
	// Subject is what was being handled, nil if that is not known. It is comparable.
	Subject any
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("a fault of the agent itself: panic at %s (%s)", e.Place, e.What)
}

// Recovered makes an Error of what recover has returned; nil when there was no panic. It belongs into
// the deferred function that calls recover, since it reads the stack. What is an *Error already keeps
// its place.
func Recovered(value any) *Error {
	if value == nil {
		return nil
	}
	if e, ok := value.(*Error); ok {
		return e
	}
	e := &Error{What: fmt.Sprintf("a value of type %T", value)}
	if err, ok := value.(runtime.Error); ok {
		e.What = err.Error()
	}
	e.Place, e.Stack = origin()
	return e
}

// origin describes the frames from the one that panicked outward.
func origin() (place, stack string) {
	callers := make([]uintptr, 64)
	frames := runtime.CallersFrames(callers[:runtime.Callers(2, callers)])
	var lines []string
	for panicked := false; len(lines) < maxFrames; {
		f, more := frames.Next()
		switch {
		case f.Function == "runtime.gopanic":
			panicked = true
		case panicked && (len(lines) > 0 || !strings.HasPrefix(f.Function, "runtime.")):
			lines = append(lines, at(f)+" "+path.Base(f.Function))
			if place == "" {
				place = at(f)
			}
		}
		if !more {
			break
		}
	}
	if place == "" {
		place = "an unknown place"
	}
	return place, strings.Join(lines, "\n")
}

// at is a frame's place with the last folder of its path.
func at(f runtime.Frame) string {
	return fmt.Sprintf("%s/%s:%d", path.Base(path.Dir(f.File)), path.Base(f.File), f.Line)
}

// Guard wraps the function of a goroutine. A panic of f is told to caught and returned as an *Error.
// Where caught is nil a panic goes on, and ends the process.
func Guard(caught func(*Error), f func() error) func() error {
	if caught == nil {
		return f
	}
	return func() (err error) {
		defer func() {
			if e := Recovered(recover()); e != nil {
				caught(e)
				err = e
			}
		}()
		return f()
	}
}

// Catch calls f and returns a panic of it as an *Error, which nobody was told of yet.
func Catch(f func() error) error { return Guard(func(*Error) {}, f)() }

// GuardFunc is Guard for a function that returns no error, such as a timer's.
func GuardFunc(caught func(*Error), f func()) func() {
	guarded := Guard(caught, func() error { f(); return nil })
	return func() { _ = guarded() } // caught was told
}
