package main

import (
	"crypto/rand"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net"
	"net/http"
	"time"
)

//go:embed settings
var settingsFiles embed.FS

var settingsTemplate = template.Must(template.ParseFS(settingsFiles, "settings/page.html"))

// settings is the Settings page of the app, with the agent's pages for a venue inside it.
type settings struct {
	base   string // http://127.0.0.1:port, which is its origin
	key    string // the key that the app signs tokens with; the agent has it in console.keys
	agent  string // the origin of the agent's pages
	venues []settingsVenue

	listener net.Listener
	server   *http.Server
	served   chan error // the goroutine of start sends once
}

// settingsVenue is a venue whose settings the demo's user may see.
type settingsVenue struct{ ID, Name, Initials, Place string }

// settingsPage is what page.html shows.
type settingsPage struct {
	Title, Path, Agent string
	Webhooks           bool
	Venue              settingsVenue
	Venues             []settingsVenue
	Areas              []settingsItem
	Groups             []settingsGroup
}

type settingsItem struct{ Path, Name string }

type settingsGroup struct {
	Name  string
	Items []settingsItem
}

var (
	areas = []settingsItem{{"leads", "Leads"}, {"visits", "Visits"}, {"proposals", "Proposals"}, {"calendar", "Calendar"}, {"payments", "Payments"}}

	groups = []settingsGroup{
		{"Venue", []settingsItem{{"profile", "Profile"}, {"spaces", "Spaces and prices"}, {"team", "Team"}}},
		{"Sales", []settingsItem{{"templates", "Proposal templates"}, {"payments", "Payments"}}},
		{"Developers", []settingsItem{{"webhooks", "Webhooks"}, {"keys", "API keys"}}},
	}
)

// listenSettings takes a port for the page. The agent must know the origin before it starts, and
// the page must know the agent, so start is a step of its own.
func listenSettings(venues []*venue) (*settings, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the app's Settings page: %w", err)
	}
	s := &settings{base: "http://" + listener.Addr().String(), key: randomHex(), listener: listener, served: make(chan error, 1)}
	for i, v := range []settingsVenue{{Initials: "QA", Place: "Évora, Alentejo"}, {Initials: "PR", Place: "Lisbon"}} {
		v.ID, v.Name = venues[3*i].id, venues[3*i].name
		s.venues = append(s.venues, v)
	}
	return s, nil
}

// randomHex returns a new secret, as openssl rand -hex 32 does.
func randomHex() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return hex.EncodeToString(key)
}

// start serves the page. close ends it.
func (s *settings) start(agent string) {
	s.agent = agent
	s.server = &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	go func() { s.served <- s.server.Serve(s.listener) }()
}

func (s *settings) close() error {
	if s.server == nil {
		return s.listener.Close()
	}
	_ = s.server.Close()
	if err := <-s.served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("the app's Settings page ended: %w", err)
	}
	return nil
}

// handler returns what the app serves. A real app asks who is signed in; here that is always Inês,
// who owns two venues.
func (s *settings) handler() http.Handler {
	mux := http.NewServeMux()
	assets, err := fs.Sub(settingsFiles, "settings")
	if err != nil {
		panic(err) // the folder is part of the program
	}
	mux.Handle("GET /assets/", http.StripPrefix("/assets/", http.FileServerFS(assets)))
	mux.HandleFunc("GET /settings/{page}", s.page)
	mux.HandleFunc("GET /{page}", s.page)
	mux.Handle("GET /{$}", http.RedirectHandler("/settings/webhooks", http.StatusSeeOther))
	mux.HandleFunc("POST /settings/webhooks/token", s.token)
	// No other page may ask for a token in the user's name.
	return http.NewCrossOriginProtection().Handler(mux)
}

// venue returns the venue that a request names, if the user may see it.
func (s *settings) venue(r *http.Request) (settingsVenue, bool) {
	for _, v := range s.venues {
		if v.ID == r.URL.Query().Get("venue") {
			return v, true
		}
	}
	return settingsVenue{}, false
}

// token signs a token for the frame.
func (s *settings) token(w http.ResponseWriter, r *http.Request) {
	venue, ok := s.venue(r)
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprint(w, settingsToken([]byte(s.key), venue.ID, "user_ines", true, time.Now()))
}

func (s *settings) page(w http.ResponseWriter, r *http.Request) {
	page := settingsPage{Path: r.PathValue("page"), Agent: s.agent, Venues: s.venues, Areas: areas, Groups: groups}
	var ok bool
	if page.Venue, ok = s.venue(r); !ok {
		page.Venue = s.venues[0]
	}
	for _, g := range append([]settingsGroup{{Items: areas}}, groups...) {
		for _, item := range g.Items {
			if item.Path == page.Path {
				page.Title = item.Name
			}
		}
	}
	if page.Title == "" {
		http.NotFound(w, r)
		return
	}
	page.Webhooks = page.Path == "webhooks"
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
		"frame-src "+s.agent+"; form-action 'self' "+s.agent+"; base-uri 'none'; frame-ancestors 'none'")
	// With no-referrer the browser would send the form with Origin: null, which the agent refuses.
	h.Set("Referrer-Policy", "strict-origin-when-cross-origin")
	h.Set("Content-Type", "text/html; charset=utf-8")
	_ = settingsTemplate.Execute(w, page) // the browser may be gone
}
