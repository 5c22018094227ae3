package console

import (
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/api"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/feed"
	"github.com/quintago/webhook-agent/agent/limits"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// Prefix begins the path of every page.
const Prefix = "/console"

// Config is what the pages work with. It is that of the API, whose answers they show.
type Config struct {
	Config  *config.Config
	DB      *outbox.DB // has the pool of the API
	Webhook *sink.Webhook
	Log     *slog.Logger
	Version string
	Feed    *feed.Feed
	Limits  *limits.Limits
	// Terms returns what this agent does with each slot.
	Terms func() []api.TermInfo
}

// Handler serves the pages.
type Handler struct {
	cfg   Config
	door  *door
	guard http.Handler
	pages *templates
	// log and status are what open pages share of the database.
	log    *logLook
	status *statusLook
}

// New returns the handler of all paths below Prefix.
func New(cfg Config) (*Handler, error) {
	pages, err := allTemplates()
	if err != nil {
		return nil, err
	}
	h := &Handler{cfg: cfg, pages: pages, log: &logLook{}, status: &statusLook{}}
	h.open(true)
	return h, nil
}

// Venues returns the same pages without those of operators.
func (h *Handler) Venues() *Handler {
	other := *h
	other.open(false)
	return &other
}

// open sets up the door and the paths behind it.
func (h *Handler) open(operators bool) {
	token := h.cfg.Config.Admin.Token
	if !operators {
		token = secret.Text{}
	}
	h.door = newDoor(doorConfig{
		verifier: access.NewVerifier(token, h.cfg.Config.ConsoleKeys()), sessions: access.NewSessions(h.cfg.Config.Admin.Token, h.cfg.Config.Console.Keys),
		operators: operators, hasToken: !token.IsZero(), origins: h.cfg.Config.Console.Origins, url: h.cfg.Config.Console.URL,
		life: h.cfg.Config.Console.Session, log: h.cfg.Log, now: time.Now,
	}, h)
	mux := http.NewServeMux()
	h.door.register(mux)
	mux.Handle("GET "+staticPath+"{hash}/{name}", http.HandlerFunc(serveStatic))
	for _, p := range h.routes() {
		method, path, _ := strings.Cut(p.pattern, " ")
		if !p.venuesOnly {
			mux.Handle(method+" "+Prefix+path, h.serve(p))
		}
		if !p.operatorsOnly {
			mux.Handle(method+" "+Prefix+"/v/{venue}"+path, h.serve(p))
		}
	}
	mux.HandleFunc("/", h.notFound)
	h.guard = h.door.guard(mux)
}

// route is a page and who may ask for it.
type route struct {
	// pattern is the method and the path below Prefix, or below a venue's.
	pattern string
	do      func(*visit) error
	// manage is set for what changes something.
	manage bool
	// operatorsOnly and venuesOnly are set for what only the one kind of paths has.
	operatorsOnly, venuesOnly bool
	// live is set for what open pages ask for every few seconds. It is answered from memory.
	live bool
	// slow is set for what waits for a customer's server.
	slow bool
}

// routes returns all pages. A test tries each of them with the ids of another venue.
func (h *Handler) routes() []route {
	return []route{
		{pattern: "GET /{$}", do: h.overview, operatorsOnly: true},
		{pattern: "GET /live", do: h.overviewLive, operatorsOnly: true, live: true},
		{pattern: "GET /find", do: h.find},
		{pattern: "GET /{$}", do: toEndpoints, venuesOnly: true},

		{pattern: "GET /endpoints", do: h.endpoints},
		{pattern: "POST /endpoints", do: h.createEndpoint, manage: true},
		{pattern: "GET /endpoints/new", do: h.newEndpoint, manage: true},
		{pattern: "POST /endpoints/check", do: h.checkEndpoint},
		{pattern: "GET /endpoints/{endpoint}", do: h.endpoint},
		{pattern: "GET /endpoints/{endpoint}/edit", do: h.editEndpoint, manage: true},
		{pattern: "POST /endpoints/{endpoint}", do: h.changeEndpoint, manage: true},
		{pattern: "POST /endpoints/{endpoint}/enable", do: h.enableEndpoint, manage: true},
		{pattern: "GET /endpoints/{endpoint}/enable", do: toEndpoint},
		{pattern: "GET /endpoints/{endpoint}/disable", do: h.askDisable, manage: true},
		{pattern: "POST /endpoints/{endpoint}/disable", do: h.disableEndpoint, manage: true},
		{pattern: "GET /endpoints/{endpoint}/rotate", do: h.askRotate, manage: true},
		{pattern: "POST /endpoints/{endpoint}/rotate", do: h.rotateSecret, manage: true},
		{pattern: "GET /endpoints/{endpoint}/remove", do: h.askRemove, manage: true},
		{pattern: "POST /endpoints/{endpoint}/remove", do: h.removeEndpoint, manage: true},
		{pattern: "GET /endpoints/{endpoint}/test", do: toEndpoint},
		{pattern: "POST /endpoints/{endpoint}/test", do: h.testEndpoint, manage: true, slow: true},

		{pattern: "GET /deliveries", do: h.deliveries},
		{pattern: "GET /deliveries/live", do: h.deliveriesLive, live: true},
		{pattern: "GET /deliveries/{event}/{endpoint}", do: h.delivery},
		{pattern: "POST /deliveries/{event}/{endpoint}", do: h.revealDelivery},
		{pattern: "GET /events/{event}", do: h.event},
		{pattern: "POST /events/{event}", do: h.revealEvent},

		{pattern: "GET /replays", do: h.replays},
		{pattern: "GET /replays/new", do: h.newReplay, manage: true},
		{pattern: "GET /replays/count", do: h.countReplay},
		{pattern: "POST /replays", do: h.startReplay, manage: true},
		{pattern: "GET /replays/{replay}", do: h.replay},
		{pattern: "GET /replays/{replay}/live", do: h.replayLive},
		{pattern: "POST /replays/{replay}", do: h.steerReplay, manage: true},
	}
}

// contentPolicy is what a page may do: load its own style sheet and scripts, ask its own origin, and
// post forms to it. No script makes HTML of a text.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; " +
	"require-trusted-types-for 'script'; trusted-types 'none'; frame-ancestors "

// ServeHTTP answers a request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	ancestors := "'none'"
	if origins := h.cfg.Config.Console.Origins; len(origins) > 0 && isVenues(r.URL.Path) {
		ancestors = strings.Join(origins, " ")
	} else {
		header.Set("X-Frame-Options", "DENY")
	}
	header.Set("Content-Security-Policy", contentPolicy+ancestors)
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	// With no-referrer the pages' own forms would be sent with Origin: null.
	header.Set("Referrer-Policy", "same-origin")
	if (r.Method == http.MethodGet || r.Method == http.MethodHead) && setPreferences(w, r) {
		return
	}
	h.guard.ServeHTTP(w, r)
}

// isVenues reports whether a path is one that the app shows in a frame.
func isVenues(path string) bool {
	return strings.HasPrefix(path, Prefix+"/v/") || path == Prefix+"/session"
}

func (h *Handler) notFound(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == Prefix {
		http.Redirect(w, r, home, http.StatusMovedPermanently)
		return
	}
	h.refuse(w, r, http.StatusNotFound, "there is no such page", "go back to the beginning")
}

// leads reports whether this agent records what is delivered.
func (h *Handler) leads() bool { return api.Leads(h.cfg.Terms()) }
