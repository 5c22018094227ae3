package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/sink"
)

// progress shows how far something is: one line that is written over on a terminal, else a line for
// each change.
type progress struct {
	out   *printer
	shown string    // on the line that is written over
	told  string    // the last sentence, until the line is shown again
	began time.Time // of the first count, for the rate
	first int64
}

// eraseLine goes to the beginning of the line and erases it (ECMA-48, CR and EL).
const eraseLine = "\r\x1b[K"

// say shows a text.
func (p *progress) say(text string) {
	text = sink.Printable(text)
	if p.out.asJSON || text == p.shown {
		return
	}
	p.shown, p.told = text, ""
	if p.out.width == 0 {
		p.out.line("%s", text)
		return
	}
	fmt.Fprint(p.out.w, eraseLine+strings.TrimRight(pad(text, max(p.out.width-1, 1)), " "))
}

// tell shows a sentence, whole and on lines of its own, since it says what to do.
func (p *progress) tell(sentence string) {
	if p.out.asJSON || sentence == p.told {
		return
	}
	p.clear()
	p.told = sentence
	p.out.line("%s", sentence)
}

// clear takes the line away.
func (p *progress) clear() {
	if p.out.width > 0 && p.shown != "" {
		fmt.Fprint(p.out.w, eraseLine)
	}
	p.shown = ""
}

// barWidth is how many characters a bar has.
const barWidth = 24

// bar describes how much of total is done at the time now, with the rate since the first call and
// the time that is left.
func (p *progress) bar(done, total int64, now time.Time) string {
	if p.began.IsZero() {
		p.began, p.first = now, done
	}
	share := float64(done) / float64(max(total, 1))
	filled := min(int(share*barWidth), barWidth)
	text := fmt.Sprintf("[%s%s] %3d%%  %d of %d", strings.Repeat("=", filled), strings.Repeat(" ", barWidth-filled), int(share*100), done, total)
	elapsed := now.Sub(p.began)
	if elapsed < time.Second || done == p.first {
		return text
	}
	rate := float64(done-p.first) / elapsed.Seconds()
	left := time.Duration(float64(total-done) / rate * float64(time.Second))
	return fmt.Sprintf("%s  %.1f/s  %s left", text, rate, config.FormatDuration(left.Round(time.Second)))
}
