//go:build browser

package browser

import "time"

// Layout fails the test if the page scrolls sideways, or if a text is cut. A text that ends in an
// ellipsis is not cut if its title has the whole.
func (p *Page) Layout() {
	p.t.Helper()
	for _, fault := range p.layoutFaults() {
		p.t.Errorf("%s: %s", p.where(), fault)
	}
}

func (p *Page) layoutFaults() []string {
	p.t.Helper()
	faults, err := look[[]string](p, "layoutFaults")
	if err != nil {
		p.t.Fatalf("look at the layout: %v", err)
	}
	return faults
}

// FirstPaint returns how long the page took from the request to the first text on the screen.
func (p *Page) FirstPaint() time.Duration {
	p.t.Helper()
	ms := Eval[float64](p, `new Promise(done => new PerformanceObserver(list => {
	for (const e of list.getEntries()) if (e.name === 'first-contentful-paint') done(e.startTime)
}).observe({ type: 'paint', buffered: true }))`)
	return time.Duration(ms * float64(time.Millisecond))
}

// Weight returns how many bytes the page and what it loaded took on the way, bodies alone. What the
// browser had kept counts as well.
func (p *Page) Weight() int {
	p.t.Helper()
	return Eval[int](p, `[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
	.filter(e => e.initiatorType !== 'fetch').reduce((sum, e) => sum + e.encodedBodySize, 0)`)
}
