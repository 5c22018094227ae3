package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// watchFlags are --watch and its interval.
type watchFlags struct {
	watch    bool
	interval intervalFlag
}

func (f *watchFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&f.watch, "watch", "w", false, "show it again and again until interrupted")
	f.interval.add(cmd)
}

func (f *watchFlags) check(cmd *cobra.Command) error {
	needs := "--watch"
	if cmd.Flag("follow") != nil {
		needs += " or --follow"
	}
	return f.interval.check(cmd, needs, f.watch)
}

// show prints an answer once, or again and again with --watch.
func (a *app) show(ctx context.Context, d *desk, f *watchFlags, title string, look func(context.Context, *desk) error) error {
	if !f.watch {
		return look(ctx, d)
	}
	return a.watch(ctx, d, f.interval.every, title, look)
}

// The control sequences of a screen that is drawn anew (xterm, and all that follow it).
const (
	// openScreen goes to the second screen, hides the cursor, and lets the terminal cut long lines:
	// a line that went on below would move the others.
	openScreen  = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	closeScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	// beginFrame and endFrame let terminals that know them show a frame at once.
	beginFrame = "\x1b[?2026h\x1b[H"
	endFrame   = "\x1b[J\x1b[?2026l"
	eraseRest  = "\x1b[K"
)

// watch shows an answer again and again until ctx ends, which is no error. On a terminal each look
// takes the place of the one before, and the last one stays. Elsewhere it is printed below, and for
// a program each is one line of JSON. A look that fails does not end it, but for the first.
func (a *app) watch(ctx context.Context, d *desk, every time.Duration, title string, look func(context.Context, *desk) error) error {
	out := d.out
	out.compact = out.asJSON
	inPlace := out.terminal && !out.asJSON && !dumb(a.getenv)
	var last string
	if inPlace {
		fmt.Fprint(out.w, openScreen)
		defer func() { fmt.Fprint(out.w, closeScreen, last) }()
	}
	return repeat(ctx, every, func(first bool) error {
		var text bytes.Buffer
		frame := *out
		out.measure()
		frame.width, frame.height, frame.w = out.width, out.height, &text
		err := look(ctx, &desk{cfg: d.cfg, db: d.db, out: &frame})
		if err != nil && (first || ctx.Err() != nil) {
			return err
		}
		switch {
		case inPlace && err != nil:
			frame.line("webhook-agent: %v", err)
			writeFrame(out.w, title, every, out.height, text.String())
		case inPlace:
			last = text.String()
			writeFrame(out.w, title, every, out.height, last)
		case err != nil:
			a.complain(err)
		default:
			if !first && !out.asJSON {
				fmt.Fprintln(out.w)
			}
			_, err = text.WriteTo(out.w)
			return err
		}
		return nil
	})
}

// repeat calls do at once, and then after each interval until ctx ends. An error of do ends it, but
// not one that comes from the end of ctx.
func repeat(ctx context.Context, every time.Duration, do func(first bool) error) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for first := true; ; first = false {
		if err := do(first); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// writeFrame draws text at the top of the screen, in one piece. Each line takes the place of the
// one that stood there, so the screen is never empty in between. It is erased first: behind a line
// that is as wide as the screen, erasing takes its last character. What does not fit below is
// counted.
func writeFrame(w io.Writer, title string, every time.Duration, height int, text string) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if room := height - 3; height > 0 && len(lines) > max(1, room) {
		hidden := len(lines) - max(1, room)
		lines = append(lines[:max(1, room)], fmt.Sprintf("... %s more lines", formatCount(hidden)))
	}
	lines = append([]string{fmt.Sprintf("%s  every %s: %s  (Ctrl-C ends)", time.Now().Format(time.TimeOnly), every, title)}, lines...)
	fmt.Fprint(w, beginFrame, eraseRest, strings.Join(lines, "\r\n"+eraseRest), endFrame)
}
