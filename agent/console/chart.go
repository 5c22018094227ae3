package console

import (
	"fmt"
	"html/template"
	"math"
	"strings"

	"github.com/quintago/webhook-agent/agent/feed"
	"github.com/quintago/webhook-agent/outbox"
)

// The charts are SVG made of numbers alone. Their colors are classes, since the pages allow no style
// attributes, and each has a text for who does not see it.

// rate returns a rate for people.
func (t *texts) rate(r float64) string {
	if r < 10 {
		return t.decimal(r)
	}
	return fmt.Sprintf("%.0f", r)
}

// upTo returns a number that was counted up to a bound.
func (t *texts) upTo(n any, capped bool) string {
	if capped {
		return "≥\u202f" + t.number(n)
	}
	return t.number(n)
}

// spark returns the newest outcomes of an endpoint, a bar each: the higher, the longer the attempt
// took. What failed fills the whole height.
func (t *texts) spark(outcomes []outbox.Outcome) template.HTML {
	const width, height, step = 160, 24, 5
	var b strings.Builder
	counts := map[outbox.Status]int{}
	for i, o := range outcomes {
		counts[o.Status]++
		h := float64(height)
		if o.Status == outbox.Succeeded || o.Status == outbox.Pending {
			ms := 1.0
			if o.LatencyMS != nil {
				ms = float64(max(1, *o.LatencyMS))
			}
			h = 6 + min(1, math.Log10(ms)/4)*(height-8) // 10 s are the whole height
		}
		x := width - step*(len(outcomes)-i)
		fmt.Fprintf(&b, `<rect class="%s" x="%d" y="%.1f" width="3" height="%.1f" rx="1"/>`, o.Status, x, height-h, h)
	}
	label := t.say("no deliveries yet")
	if len(outcomes) > 0 {
		var parts []string
		for _, s := range statuses {
			if counts[s] > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", counts[s], t.say(string(s))))
			}
		}
		label = t.say("the last %d deliveries: %s", len(outcomes), strings.Join(parts, ", "))
	}
	return svg("spark", width, height, label, b.String())
}

// svg returns a drawing with a text that says the same.
func svg(class string, width, height int, label, content string) template.HTML {
	return template.HTML(fmt.Sprintf(`<svg class="%s" viewBox="0 0 %d %d" role="img" aria-label="%s">%s</svg>`, //nolint:gosec // of numbers and texts of ours
		class, width, height, template.HTMLEscapeString(label), content))
}

const (
	// plotWidth is the width of a plot that takes half of a page, and wideWidth of one that takes all.
	plotWidth, wideWidth, plotHeight = 600, 1100, 140
	plotTop, plotBottom              = 24, 24
)

// plot is a chart under way: where a value stands, and the lines of its scale.
type plot struct {
	b       strings.Builder
	width   int
	columns int
	most    float64
}

func newPlot(width, columns int, most float64, scale func(float64) string) *plot {
	p := &plot{width: width, columns: max(1, columns), most: niceAbove(most)}
	for i := range 3 {
		value := p.most * float64(i) / 2
		y := p.y(value)
		fmt.Fprintf(&p.b, `<line class="grid" x1="0" x2="%d" y1="%.1f" y2="%.1f"/>`, p.width, y, y)
		if i > 0 {
			fmt.Fprintf(&p.b, `<text x="0" y="%.1f">%s</text>`, y-5, template.HTMLEscapeString(scale(value)))
		}
	}
	return p
}

// niceAbove returns the least of 1, 2, 5, 10, 20, … that is not below a value.
func niceAbove(value float64) float64 {
	if value <= 2 {
		return 2
	}
	power := math.Pow(10, math.Floor(math.Log10(value)))
	for _, f := range []float64{1, 2, 5, 10} {
		if f*power >= value {
			return f * power
		}
	}
	return 10 * power
}

func (p *plot) y(value float64) float64 {
	return plotTop + (plotHeight-plotBottom-plotTop)*(1-min(1, value/p.most))
}

// x returns where a column begins, and how wide it is.
func (p *plot) x(column int) (float64, float64) {
	width := float64(p.width) / float64(p.columns)
	return width * float64(column), width
}

// times writes the first and the last time of the columns below them.
func (p *plot) times(first, last string) {
	fmt.Fprintf(&p.b, `<text x="0" y="%d">%s</text><text x="%d" y="%d" text-anchor="end">%s</text>`,
		plotHeight-4, template.HTMLEscapeString(first), p.width, plotHeight-4, template.HTMLEscapeString(last))
}

func (p *plot) svg(label string) template.HTML {
	return svg("plot", p.width, plotHeight, label, p.b.String())
}

// stack draws a column of parts on top of each other.
func (p *plot) stack(column int, parts []part) {
	x, width := p.x(column)
	sum := 0.0
	for _, part := range parts {
		if part.n == 0 {
			continue
		}
		top, bottom := p.y(sum+part.n), p.y(sum)
		sum += part.n
		fmt.Fprintf(&p.b, `<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`, part.class, x+0.5, top, max(1, width-1), max(0.8, bottom-top))
	}
}

// part is a part of a column.
type part struct {
	class string
	n     float64
}

// bars draws the outcomes of an endpoint by time.
func (t *texts) bars(stats outbox.EndpointStats) template.HTML {
	most := 0.0
	for _, b := range stats.Buckets {
		most = max(most, float64(b.Succeeded+b.Failed+b.Missed+b.Pending))
	}
	p := newPlot(plotWidth, len(stats.Buckets), most, func(v float64) string { return t.number(int64(v)) })
	for i, b := range stats.Buckets {
		p.stack(i, []part{{"succeeded", float64(b.Succeeded)}, {"pending", float64(b.Pending)}, {"missed", float64(b.Missed)}, {"failed", float64(b.Failed)}})
	}
	t.span(p, stats.Buckets)
	return p.svg(t.say("deliveries by time and outcome"))
}

// span writes the times of the first and the last bucket.
func (t *texts) span(p *plot, buckets []outbox.StatsBucket) {
	if len(buckets) > 0 {
		first := buckets[0].From.UTC()
		p.times(fmt.Sprintf("%d %s, %s UTC", first.Day(), t.months[first.Month()-1], first.Format("15:04")), t.say("now"))
	}
}

// lines draws the latency of an endpoint by time: the median, and the 95th percentile.
func (t *texts) lines(stats outbox.EndpointStats) template.HTML {
	most := 0.0
	for _, b := range stats.Buckets {
		if b.P95MS != nil {
			most = max(most, float64(*b.P95MS))
		}
	}
	p := newPlot(plotWidth, len(stats.Buckets), most, func(v float64) string { n := max(1, int(v)); return t.milliseconds(&n) })
	for i, b := range stats.Buckets {
		if b.P50MS == nil || b.P95MS == nil {
			continue
		}
		x, width := p.x(i)
		top, middle := p.y(float64(*b.P95MS)), p.y(float64(*b.P50MS))
		fmt.Fprintf(&p.b, `<rect class="p95" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/><rect class="p50" x="%.1f" y="%.1f" width="%.1f" height="2"/>`,
			x+0.5, top, max(1, width-1), max(0.8, middle-top), x+0.5, middle-1, max(1, width-1))
	}
	t.span(p, stats.Buckets)
	return p.svg(t.say("latency by time: the median and the 95th percentile"))
}

// rates draws what was recorded in each minute of the last hour.
func (t *texts) rates(minutes []feed.Minute) template.HTML {
	most := 0.0
	for _, m := range minutes {
		most = max(most, float64(m.Succeeded+m.Failed+m.Missed+m.Retried))
	}
	p := newPlot(wideWidth, len(minutes), most, func(v float64) string { return t.number(int64(v)) })
	for i, m := range minutes {
		p.stack(i, []part{{"succeeded", float64(m.Succeeded)}, {"pending", float64(m.Retried)}, {"missed", float64(m.Missed)}, {"failed", float64(m.Failed)}})
	}
	p.times(t.say("an hour ago"), t.say("now"))
	return p.svg(t.say("deliveries in each minute of the last hour"))
}

// dict makes a map for a template that is called with several values.
func dict(pairs ...any) (map[string]any, error) {
	m := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		name, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("%v is no name", pairs[i])
		}
		m[name] = pairs[i+1]
	}
	return m, nil
}
