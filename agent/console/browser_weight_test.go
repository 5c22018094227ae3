//go:build browser

package console

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"
)

const (
	// mostWeight is how many bytes a page may take on the way, with its styles and scripts.
	mostWeight = 25 << 10
	// mostPaint is how long the first text may take, from the request on.
	mostPaint = 100 * time.Millisecond
	// mostOfLine is how much longer it may take than that of a page of a single line, on a machine that
	// does too much else for mostPaint.
	mostOfLine = 3
)

// This test is not parallel, because it measures. The quickest of some attempts counts.
func TestBrowser_PagesAreLightAndQuick(t *testing.T) {
	const venue = "quinta-das-flores"
	s := newSite(t)
	s.seedVenue(venue)
	s.seedStates(venue)
	line := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<!doctype html><html lang="en"><title>Line</title><link rel="icon" href="data:,"><p>A line`)
	}))
	t.Cleanup(line.Close)
	p := s.tab()
	for _, path := range []string{"/", "/endpoints/new", "/endpoints/ep_" + venue + "_1", "/deliveries"} {
		p.Open(s.server.URL + Prefix + path)
		weight := p.Weight() // what the browser has kept counts as well
		if weight > mostWeight {
			t.Errorf("%s takes %d bytes, want at most %d", path, weight, mostWeight)
		}
		var took, floor []time.Duration
		for range 3 {
			p.Open(line.URL)
			floor = append(floor, p.FirstPaint())
			p.Open(s.server.URL + Prefix + path)
			if took = append(took, p.FirstPaint()); took[len(took)-1] <= mostPaint {
				break
			}
		}
		t.Logf("%s: %d bytes, first text after %s, that of a line after %s", path, weight, slices.Min(took), slices.Min(floor))
		if most := max(mostPaint, mostOfLine*slices.Min(floor)); slices.Min(took) > most {
			t.Errorf("%s shows its first text after %s, want at most %s", path, slices.Min(took), most)
		}
	}
}
