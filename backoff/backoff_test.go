package backoff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// logged returns a logger, and a function that returns what it has logged since the last call, a
// line each.
func logged() (*slog.Logger, func() []string) {
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	return log, func() []string {
		defer text.Reset()
		return strings.Split(strings.TrimSpace(text.String()), "\n")
	}
}

func TestTrouble_IsLoggedWhenItBeginsChangesAndEnds(t *testing.T) {
	log, lines := logged()
	trouble := Trouble{Log: log, Level: slog.LevelWarn, Begins: "cannot do it", Ends: "doing it again"}
	first, second := errors.New("a"), errors.New("b")
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{first, `level=WARN msg="cannot do it" error=a table=x`},
		{errors.New("a"), ""}, // the same text
		{second, `level=WARN msg="cannot do it" error=b table=x`},
		{nil, `level=INFO msg="doing it again" table=x`},
		{nil, ""},
		{second, `level=WARN msg="cannot do it" error=b table=x`},
	} {
		said := trouble.Note(c.err, "table", "x")
		if got := strings.Join(lines(), "\n"); got != c.want || said != (c.want != "") {
			t.Errorf("after %v: said %t %q, want %q", c.err, said, got, c.want)
		}
	}
	trouble.Ends = ""
	if said := trouble.Note(nil); said || lines()[0] != "" {
		t.Error("it says that it is over although something else does")
	}
}

func TestRetry_GoesOnUntilItSucceedsOrMayNot(t *testing.T) {
	hopeless := errors.New("hopeless")
	for name, c := range map[string]struct {
		answers []error // nil at the end of them
		stop    time.Duration
		want    error
		calls   int
		logged  int
	}{
		"at once":          {nil, 0, nil, 1, 0},
		"after failures":   {[]error{errors.New("a"), errors.New("a"), errors.New("b")}, 0, nil, 4, 3},
		"what is hopeless": {[]error{errors.New("a"), hopeless}, 0, hopeless, 2, 1},
		"what is ended":    {[]error{errors.New("a"), errors.New("a"), errors.New("a"), errors.New("a")}, 300 * time.Millisecond, errStopped, 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				if c.stop > 0 {
					time.AfterFunc(c.stop, func() { cancel(errStopped) })
				}
				log, lines := logged()
				trouble := Trouble{Log: log, Begins: "cannot do it", Ends: "doing it again"}
				calls := 0
				err := Retry(ctx, New(), &trouble, func(err error) bool { return errors.Is(err, hopeless) }, func(context.Context) error {
					if calls++; calls <= len(c.answers) {
						return c.answers[calls-1]
					}
					return nil
				})
				n := 0
				for _, line := range lines() {
					if line != "" {
						n++
					}
				}
				if !errors.Is(err, c.want) || calls < c.calls || c.stop == 0 && calls != c.calls || n != c.logged {
					t.Errorf("%v after %d calls, %d lines; want %v, %d, %d", err, calls, n, c.want, c.calls, c.logged)
				}
				cancel(nil)
			})
		})
	}
}

// A transaction that was committed is one, also when the context ends at that moment.
func TestRetry_ReturnsWhatCameOfACallThatOutlivesTheContext(t *testing.T) {
	for name, want := range map[string]error{"a success": nil, "the end": io.EOF} {
		ctx, cancel := context.WithCancelCause(t.Context())
		trouble := Trouble{Log: slog.New(slog.DiscardHandler)}
		got := Retry(ctx, New(), &trouble, func(err error) bool { return errors.Is(err, io.EOF) }, func(context.Context) error {
			cancel(errStopped)
			return want
		})
		if !errors.Is(got, want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

var errStopped = errors.New("stopped")

func TestNew_WaitsLongerAndLongerUpToItsMost(t *testing.T) {
	quick, slow := New(), NewSlow()
	for i := range 12 {
		q, stop := quick.Next()
		s, stopSlow := slow.Next()
		least := min(time.Duration(80<<i)*time.Millisecond, 4*time.Second)
		if stop || stopSlow || q < least || q > 5*time.Second || s > 15*time.Second {
			t.Error(fmt.Sprint(i, q, s))
		}
	}
	if s, _ := slow.Next(); s < 12*time.Second {
		t.Errorf("the slow one waits %v at last", s)
	}
}
