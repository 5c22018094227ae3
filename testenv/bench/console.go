package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// consoleSite is the console of an agent, in the session of an operator.
type consoleSite struct {
	client *http.Client
	base   string
	cookie string
}

// openConsole signs in.
func (d *database) openConsole(ctx context.Context) (*consoleSite, error) {
	s := &consoleSite{base: "http://" + d.admin, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: openPages}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	form := strings.NewReader(url.Values{"token": {adminToken}}.Encode())
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+"/console/signin", form)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := s.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("sign in to the console: %w", err)
	}
	defer response.Body.Close()
	for _, c := range response.Cookies() {
		s.cookie = c.Name + "=" + c.Value
	}
	if s.cookie == "" {
		return nil, fmt.Errorf("sign in to the console: the agent answers %s", response.Status)
	}
	return s, nil
}

// get asks for a page and returns how long the whole answer took, and its size as it was sent. It waits
// when the agent says that these are too many requests.
func (s *consoleSite) get(ctx context.Context, path string) (took time.Duration, size int64, err error) {
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+path, nil)
		if err != nil {
			return 0, 0, err
		}
		request.Header.Set("Cookie", s.cookie)
		request.Header.Set("Accept-Encoding", "gzip")
		began := time.Now()
		response, err := s.client.Do(request)
		if err != nil {
			return 0, 0, err
		}
		size, err = io.Copy(io.Discard, response.Body)
		took = time.Since(began)
		_ = response.Body.Close()
		switch {
		case err != nil:
			return 0, 0, err
		case response.StatusCode == http.StatusOK:
			return took, size, nil
		case response.StatusCode != http.StatusTooManyRequests:
			return 0, 0, fmt.Errorf("the page %s answers %s", path, response.Status)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
}

// consolePages measures the pages of the console over a large log.
func (b *bench) consolePages(ctx context.Context, d *database) (err error) {
	if _, err := d.conn.Exec(ctx, endPending); err != nil {
		return fmt.Errorf("end what is pending: %w", err)
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	site, err := d.openConsole(ctx)
	if err != nil {
		return err
	}
	event := fmt.Sprintf("evt_%026d", b.config.log/2+1)
	for _, page := range []struct{ name, path string }{
		{"overview", "/console/"}, {"endpoints", "/console/endpoints"}, {"endpoints of a large venue", "/console/v/venue_wide/endpoints"},
		{"the busiest endpoint, a day", "/console/endpoints/ep_00000"}, {"the busiest endpoint, 30 days", "/console/endpoints/ep_00000?window=30d"},
		{"deliveries", "/console/deliveries"}, {"deliveries, a type that never occurs", "/console/deliveries?type=venue.closed"},
		{"deliveries of a large venue, failed", "/console/v/venue_wide/deliveries?status=failed"},
		{"an event", "/console/events/" + event}, {"replays", "/console/replays"}, {"a new replay of the busiest endpoint", "/console/replays/new?endpoint=ep_00000"},
	} {
		_, size, err := site.get(ctx, page.path)
		var took []time.Duration
		for range pageRounds {
			if err != nil {
				return err
			}
			var t time.Duration
			t, _, err = site.get(ctx, page.path)
			took = append(took, t)
		}
		if err != nil {
			return err
		}
		slices.Sort(took)
		warm := took[len(took)/2]
		b.say("  console, %-48s %s, %.1f KiB", page.name, milliseconds(warm), float64(size)/1024)
		b.report.add(row{
			scenario: "log: console, " + page.name, value: fmt.Sprintf("%s, %.1f KiB compressed", milliseconds(warm), float64(size)/1024),
			goal: "at most " + milliseconds(goalPage), reached: warm <= goalPage,
		})
	}
	return nil
}
