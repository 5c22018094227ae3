package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/quintago/webhook-agent/sink"
)

// keyboard returns what a person types, nil where there is no terminal to ask and to answer on.
func keyboard(stdout io.Writer) io.Reader {
	out, ok := stdout.(*os.File)
	if !ok || !term.IsTerminal(int(out.Fd())) || !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil
	}
	return os.Stdin
}

// asks reports whether there is a person to ask.
func (d *desk) asks() bool { return d.keyboard != nil && !d.out.asJSON }

// question is a text with the answers that are possible, wrapped to the width of the terminal, with
// room for the answer behind it. The width is 0 where nothing is wrapped.
func question(text string, width int) string {
	const room = 4
	lines := []string{sink.Printable(text) + " [y/N]"}
	if width >= leastRoom {
		lines = wrap(lines[0], width-room)
	}
	return strings.Join(lines, "\n") + " "
}

// confirm asks a question. It returns an error, which ends the command with status 1, unless the
// answer is yes.
func (d *desk) confirm(ctx context.Context, format string, args ...any) error {
	fmt.Fprint(d.out.w, question(fmt.Sprintf(format, args...), d.out.width))
	answer := make(chan string, 1)
	go func() { // ends with the line, or with the process
		line, _ := bufio.NewReader(d.keyboard).ReadString('\n') // the end of the input is a no
		answer <- line
	}()
	select {
	case line := <-answer:
		line = strings.ToLower(strings.TrimSpace(line))
		if line != "y" && line != "yes" {
			d.out.line("nothing was done")
			return errFindings
		}
		return nil
	case <-ctx.Done():
		fmt.Fprintln(d.out.w)
		return ctx.Err()
	}
}
