package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"time"
)

const (
	// lookTimeout is how long all requests of checkPages may take.
	lookTimeout = 15 * time.Second
	maxPage     = 1 << 20 // bytes of a page that are read
)

// consoleLink returns an address that opens the agent's console, signed in, once.
func (a *agent) consoleLink(ctx context.Context) (string, error) {
	output, err := exec.CommandContext(ctx, a.binary, "console", "--json", "--config", a.config).Output()
	if err != nil {
		if ended, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(ended.Stderr)))
		}
		return "", fmt.Errorf("%s console: %w", a.binary, err)
	}
	var link struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal(output, &link); err != nil {
		return "", fmt.Errorf("%s console: %w", a.binary, err)
	}
	return link.URL, nil
}

// checkPages walks through the pages as browsers do: the app's Settings page, the frame in it with
// the venue's webhooks, and the operators' console.
func checkPages(ctx context.Context, s *settings, a *agent) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	app, err := look(ctx, http.MethodGet, s.base+"/settings/webhooks", nil, nil)
	if err == nil && !strings.Contains(app.body, `action="http://`+a.admin+`/console/session"`) {
		err = errors.New("it has no form for the agent")
	}
	if err != nil {
		return fmt.Errorf("the app's Settings page: %w", err)
	}
	token, err := look(ctx, http.MethodPost, s.base+"/settings/webhooks/token?venue="+s.venues[0].ID, nil, nil)
	if err != nil {
		return fmt.Errorf("a token of the app: %w", err)
	}
	frame, err := look(ctx, http.MethodPost, "http://"+a.admin+"/console/session", url.Values{"token": {token.body}, "next": {"endpoints"}},
		http.Header{"Origin": {s.base}, "Sec-Fetch-Site": {"same-site"}, "Sec-Fetch-Dest": {"iframe"}})
	if err == nil && !strings.Contains(frame.header.Get("Content-Security-Policy"), "frame-ancestors "+s.base) {
		err = errors.New("the app may not show it in a frame")
	}
	if err != nil {
		return fmt.Errorf("the webhooks in the app's Settings page: %w", err)
	}
	link, err := a.consoleLink(ctx)
	if err == nil {
		_, err = look(ctx, http.MethodGet, link, nil, http.Header{"Sec-Fetch-Site": {"none"}})
	}
	if err != nil {
		return fmt.Errorf("the operators' console: %w", err)
	}
	return nil
}

// page is what a browser got.
type page struct {
	header http.Header
	body   string
}

// look asks for a page as a browser does, follows one redirect with the cookies it got, and wants
// status 200.
func look(ctx context.Context, method, address string, form url.Values, header http.Header) (page, error) {
	request, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(form.Encode()))
	if err != nil {
		return page{}, err
	}
	if header != nil {
		request.Header = header.Clone()
	}
	if form != nil {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	client := &http.Client{CheckRedirect: func(next *http.Request, via []*http.Request) error {
		// A browser keeps Secure cookies of its own machine, also those of plain http. Package
		// cookiejar does not.
		for _, c := range next.Response.Cookies() {
			next.AddCookie(&http.Cookie{Name: c.Name, Value: c.Value, Quoted: c.Quoted})
		}
		if len(via) > 1 {
			return fmt.Errorf("it leads from one page to another: %s", next.URL.Path)
		}
		return nil
	}}
	response, err := client.Do(request)
	if err != nil {
		return page{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxPage))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %d", response.Request.URL.Path, response.StatusCode)
	}
	return page{response.Header, string(body)}, err
}
