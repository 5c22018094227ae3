package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/config"
)

const (
	// maxListed is the greatest value of --limit.
	maxListed = 10_000
	// pageRows is how many rows --all reads at a time.
	pageRows = 1000
)

// listFlags are what the commands that list have in common.
type listFlags struct {
	limit       int
	all, ndjson bool
}

func (f *listFlags) add(cmd *cobra.Command, limit int) {
	cmd.Flags().IntVar(&f.limit, "limit", limit, "at most this `many`")
	cmd.Flags().BoolVar(&f.all, "all", false, "all of them, page after page")
	cmd.Flags().BoolVar(&f.ndjson, "ndjson", false, "answer in JSON, one object a line")
}

// check returns a usage error for flags that are out of range or contradict each other.
func (f *listFlags) check(cmd *cobra.Command) error {
	switch {
	case f.all && cmd.Flags().Changed("limit"):
		return usagef(cmd, "--all and --limit exclude each other; leave one out")
	case f.limit < 1 || f.limit > maxListed:
		return usagef(cmd, "--limit is %d, must be between 1 and %d; --all lists everything", f.limit, maxListed)
	}
	return nil
}

// rows returns how many rows a page has.
func (f *listFlags) rows() int {
	if f.all {
		return pageRows
	}
	return f.limit
}

// printer sets how the list is printed.
func (f *listFlags) printer(out *printer) {
	if f.ndjson {
		out.asJSON, out.compact = true, true
	}
}

// page is a part of a list. more says that there are further ones.
type page[T any] struct {
	rows []T
	more bool
}

// list prints one page, or all of them with --all, as they come: it never holds more than one. next
// returns the page after those before. table prints rows for people. It returns how many rows there
// were.
func list[T any](ctx context.Context, f *listFlags, out *printer, next func(context.Context) (page[T], error), table func([]T)) (n int, err error) {
	array := jsonArray{out: out}
	for {
		p, err := next(ctx)
		if err != nil {
			return n, err
		}
		n += len(p.rows)
		if !out.asJSON && len(p.rows) > 0 {
			table(p.rows)
		}
		for _, row := range p.rows {
			if err := printRow(out, f, &array, row); err != nil {
				return n, err
			}
		}
		if !f.all || !p.more {
			break
		}
	}
	if out.asJSON && !f.ndjson {
		return n, array.end()
	}
	return n, nil
}

// printRow prints a row for a program, if it is one that reads.
func printRow(out *printer, f *listFlags, array *jsonArray, row any) error {
	switch {
	case !out.asJSON:
		return nil
	case f.ndjson:
		return out.json(row)
	}
	return array.add(row)
}

// intervalFlag is how often a command looks that goes on until it is interrupted.
type intervalFlag struct {
	text  string
	every time.Duration
}

const shortestInterval, longestInterval = time.Second, time.Hour

func (f *intervalFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.text, "interval", "2s", "the `time` between two looks")
}

// check parses the flag. needs names the flags without which it means nothing, and given reports
// whether one of them is there.
func (f *intervalFlag) check(cmd *cobra.Command, needs string, given bool) (err error) {
	if cmd.Flags().Changed("interval") && !given {
		return usagef(cmd, "--interval needs %s", needs)
	}
	if f.every, err = config.ParseDuration(f.text); err != nil || f.every < shortestInterval || f.every > longestInterval {
		return usagef(cmd, "--interval is %s, must be a duration between %s and %s, like 5s", config.Quoted(f.text),
			config.FormatDuration(shortestInterval), config.FormatDuration(longestInterval))
	}
	return nil
}
