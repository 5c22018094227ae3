package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// printer writes the output of the demo, one line at a time. Any number of goroutines may call its
// methods.
type printer struct {
	mu    sync.Mutex // guards w
	w     io.Writer
	color bool
	begun time.Time
}

func newPrinter(w io.Writer, color bool) *printer {
	return &printer{w: w, color: color, begun: time.Now()}
}

// useColor reports whether f is a terminal that wants colors; see https://no-color.org.
func useColor(f *os.File) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

// A style is a parameter of the escape sequence that selects it (ECMA-48, SGR).
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paint gives text a style on a terminal, and returns it unchanged elsewhere.
func (p *printer) paint(style, text string) string {
	if !p.color || text == "" {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

func (p *printer) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintln(p.w, strings.TrimRight(fmt.Sprintf(format, args...), " "))
}

// step reports that a part of the demo is ready.
func (p *printer) step(format string, args ...any) {
	p.line("  %s  %s", p.paint(green, "✓"), fmt.Sprintf(format, args...))
}

func (p *printer) problem(format string, args ...any) {
	p.line("  %s  %s", p.paint(red, "✗"), fmt.Sprintf(format, args...))
}

// These are the columns of the table of endpoints and of the list of deliveries. The widths fit the
// names in makeVenues and story.
const (
	venueColumns    = "  %-24s  %-24s  %-14s  %s"
	deliveryColumns = "  %6s  %s  %-24s  %-18s  %7v  %7s  %s"
)

// venues prints which venue subscribed to which events.
func (p *printer) venues(venues []*venue) {
	p.line("")
	p.line("%s", p.paint(bold, fmt.Sprintf(venueColumns, "venue", "wants", "registered by", "its server")))
	for _, v := range venues {
		if len(v.endpoints) == 0 {
			p.line(venueColumns, v.name, "-", "-", "none")
		}
		for _, e := range v.endpoints {
			p.line(venueColumns, v.name, strings.Join(e.events, " "), e.registered, e.behavior)
		}
	}
	p.line("")
	p.line("%s", p.paint(bold, fmt.Sprintf(deliveryColumns, "time", " ", "venue", "event", "attempt", "latency", "")))
}

// arrival prints one request to a customer's server.
func (p *printer) arrival(a arrival) {
	mark, note := p.paint(green, "✓"), p.paint(dim, a.path)
	switch {
	case a.fault != "":
		mark, note = p.paint(red, "✗"), p.paint(red, a.fault)
	case a.status >= 300:
		mark, note = p.paint(yellow, "↻"), p.paint(yellow, fmt.Sprintf("answered %d", a.status))
	case a.attempt > 1:
		note = p.paint(green, "retried")
	}
	p.line(deliveryColumns, p.sinceBegin(), mark, a.venue, a.eventType, a.attempt, milliseconds(a.latency), note)
}

// rolledBack prints an event that must never arrive.
func (p *printer) rolledBack(e *event) {
	p.line("%s", p.paint(dim, fmt.Sprintf(deliveryColumns, p.sinceBegin(), "·", e.venue.name, e.eventType, "", "", "rolled back")))
}

// sinceBegin returns the time since the start of the demo.
func (p *printer) sinceBegin() string { return fmt.Sprintf("%.1fs", time.Since(p.begun).Seconds()) }

// milliseconds returns a latency for a column: "0.8 ms", "12 ms", "5021 ms".
func milliseconds(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

// summary prints the summary.
func (p *printer) summary(s summary) {
	seen := "events, never seen"
	if s.phantoms > 0 {
		seen = fmt.Sprintf("events, seen in %d requests", s.phantoms)
	}
	row := func(label string, value any, note string) { p.line("  %-18s  %7v  %s", label, value, note) }
	p.line("")
	p.line("  %s", p.paint(bold, fmt.Sprintf("after %s", p.sinceBegin())))
	row("committed", s.committed, fmt.Sprintf("events, %d of them wanted by an endpoint", s.matched))
	row("delivered", s.arrived, fmt.Sprintf("requests, for %d deliveries", s.expected))
	row("verified", s.accepted, "deliveries: both signatures, and the app's own bytes")
	row("retried", s.retried, "of them, since their server had answered 500")
	row("rolled back", s.rolledBack, seen)
	row("p50", milliseconds(s.p50), "from COMMIT to arrival, first attempts")
	row("p99", milliseconds(s.p99), "")
	p.line("")
	if s.sound() {
		p.step("every committed event arrived, and no other")
		return
	}
	if s.faults > 0 {
		p.problem("requests that should not have been sent as they were: %d, see above", s.faults)
	}
	if missing := s.expected - s.accepted; missing > 0 {
		p.problem("deliveries that did not arrive: %d", missing)
	}
}

// lookInside prints addresses and commands for seeing more while the demo goes on.
func (p *printer) lookInside(s *server, a *agent, page *settings, link string) {
	p.line("")
	p.line("  %s", p.paint(bold, "look at it (in a browser)"))
	p.line("    %s", page.base+"/settings/webhooks")
	p.line("    %s", p.paint(dim, "the Settings page of the app, with the webhooks of a venue inside it"))
	p.line("    %s", link)
	p.line("    %s", p.paint(dim, "the operators' console; the address signs in once, within a minute. Another one:"))
	p.line("    %s console --config %s", a.binary, a.config)
	p.line("")
	p.line("  %s", p.paint(bold, "look inside (in another terminal)"))
	p.line("    psql %q", s.cluster.SocketDSN(databaseName))
	for _, command := range []string{"status", "endpoints list", "deliveries list", "deliveries list --status pending"} {
		p.line("    %s %s --config %s", a.binary, command, a.config)
	}
	p.line("    curl -H 'Authorization: Bearer %s' http://%s/metrics", a.token, a.admin)
	p.line("")
	p.line("  going on calmly; Ctrl-C ends it")
	p.line("")
}
