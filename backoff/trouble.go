package backoff

import (
	"context"
	"log/slog"

	"github.com/sethvargo/go-retry"
)

// Trouble logs something that can go wrong for a while. It logs when the trouble begins, when its
// error changes, and when it is over, but not each try in between. Only one goroutine may use it at
// a time.
type Trouble struct {
	Log   *slog.Logger
	Level slog.Level // the level of Begins
	// Begins is the message when the trouble begins or its error changes. The attribute "error" has
	// the error.
	Begins string
	// Ends is the message when the trouble is over, at level info. When it is empty, that is not
	// logged: another message says so.
	Ends string

	text string // the error that was logged; "" while nothing is wrong
}

// Note records the present state: err is what is wrong, or nil. It reports whether it has logged
// something. args are attributes of that message.
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

// Retry calls do until it succeeds, until ends reports that a further try is useless after this
// error, or until ctx ends. waits gives the time between the calls. t logs what goes wrong and when
// it is over. Retry returns nil after a success, also when ctx has ended meanwhile. Otherwise it
// returns an error that ends reports, or the cause of ctx.
func Retry(ctx context.Context, waits retry.Backoff, t *Trouble, ends func(error) bool, do func(context.Context) error) error {
	err := retry.Do(ctx, waits, func(ctx context.Context) error {
		err := do(ctx)
		switch {
		case err == nil:
			t.Note(nil)
			return nil
		case ends(err) || ctx.Err() != nil:
			return err
		}
		t.Note(err)
		return retry.RetryableError(err)
	})
	if err == nil || ends(err) {
		return err
	}
	return context.Cause(ctx) // nothing else ends it
}

// Never is an ends function for Retry: only success or the context ends it.
func Never(error) bool { return false }
