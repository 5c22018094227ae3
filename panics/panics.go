// Package panics turns a panic into an error that says where it happened. The error holds nothing
// of the data that was being handled, because the value of a panic may quote an event or a secret.
// It keeps only the type of the value, or the text of a runtime error.
package panics

import (
	"fmt"
	"path"
	"runtime"
	"strings"
)

// maxFrames limits the frames in Error.Stack.
const maxFrames = 12

// Error is a panic that was caught.
type Error struct {
	What  string // the text of a runtime error, or the type of the value
	Place string // the file and line of the frame that panicked, such as agent/match.go:123
	Stack string // the innermost frames, one on each line
	// Subject is what was being handled; nil when that is not known. It is comparable.
	Subject any
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("a fault of the agent itself: panic at %s (%s)", e.Place, e.What)
}

// Recovered returns an *Error for the value that recover has returned, and nil when there was no
// panic. It must be called in the deferred function that calls recover, because it reads the stack.
// A value that is an *Error already is returned as it is, with its own place.
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

// origin returns the place of the panic, and the frames from there outward.
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

// at returns the file and line of a frame, with the last folder of its path.
func at(f runtime.Frame) string {
	return fmt.Sprintf("%s/%s:%d", path.Base(path.Dir(f.File)), path.Base(f.File), f.Line)
}

// Guard wraps the function of a goroutine. When f panics, caught is called with the panic, and the
// wrapped function returns it as an *Error. When caught is nil, f is not wrapped, so a panic ends
// the process.
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

// Catch calls f and returns its panic as an *Error. Nothing reports that panic; the caller must do
// so.
func Catch(f func() error) error { return Guard(func(*Error) {}, f)() }

// GuardFunc is Guard for a function without an error, such as that of a timer.
func GuardFunc(caught func(*Error), f func()) func() {
	guarded := Guard(caught, func() error { f(); return nil })
	return func() { _ = guarded() } // caught was called
}
