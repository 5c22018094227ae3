package backoff

import (
	"context"
	"log/slog"

	"github.com/sethvargo/go-retry"
)

// Trouble is something that can go wrong for a while. It is logged when it begins, when it becomes another, and when it is over, and not
// at each try in between. It belongs to one goroutine at a time.
type Trouble struct {
	Log   *slog.Logger
	Level slog.Level // of Begins
	// Begins is the message when it begins, and when it becomes another; the attribute "error" says what is wrong.
	Begins string
	// Ends is the message when it is over, at level info. When it is empty, something else says so.
	Ends string

	text string // of the error that was logged, "" while nothing is wrong
}

// Note takes note of how things stand: err is what is wrong, nil when nothing is. It reports whether it has logged something, with args as
// attributes.
func (t *Trouble) Note(err error, args ...any) bool {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == t.text {
		return false
	}
	t.text = text
	switch {
	case err != nil:
		t.Log.Log(context.Background(), t.Level, t.Begins, append([]any{"error", err}, args...)...)
	case t.Ends != "":
		t.Log.Info(t.Ends, args...)
	default:
		return false
	}
	return true
}

// Retry calls do until it succeeds, until ends reports that another try is of no use after this error, or until ctx ends. It waits between
// the calls as waits says, and notes in t what goes wrong and when it goes on. It returns nil, the last error, or the cause of ctx.
func Retry(ctx context.Context, waits retry.Backoff, t *Trouble, ends func(error) bool, do func(context.Context) error) error {
	err := retry.Do(ctx, waits, func(ctx context.Context) error {
		err := do(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !ends(err):
			t.Note(err)
			return retry.RetryableError(err)
		case err == nil:
			t.Note(nil)
		}
		return err
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Never is the ends of a Retry that only success or the context ends.
func Never(error) bool { return false }
