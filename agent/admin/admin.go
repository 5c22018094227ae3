package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/quintago/webhook-agent/agent/api"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/console"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
)

const (
	// adminGrace is how long requests under way may take after the agent has ended.
	adminGrace = time.Second
	// adminConnections limits the connections that are open at a time.
	adminConnections = 256
	// headerTime and requestTime are how long the head of a request may take to come, and all of it.
	headerTime, requestTime = 5 * time.Second, 10 * time.Second
)

// Config is what the listener serves and who may ask for it.
type Config struct {
	config.Admin
	// Console has one more host name.
	Console config.Console
	// Ready returns what the agent is doing, or an error that says why it is not ready. It is
	// called by many goroutines.
	Ready func() (string, error)
	// Metrics are what /metrics shows.
	Metrics prometheus.Gatherer
	// API answers what is below api.Prefix.
	API http.Handler
	// Pages answers what is below console.Prefix.
	Pages http.Handler
	// Caught is called with each panic of a handler.
	Caught func(*panics.Error)
}

// VenueConfig is what the listener for venues serves.
type VenueConfig struct {
	config.Console
	// API answers what is below api.Prefix, for tokens of venues alone.
	API http.Handler
	// Pages answers what is below console.Prefix, without the operators' pages.
	Pages http.Handler
	// Caught is called with each panic of a handler.
	Caught func(*panics.Error)
}

// Listen opens a listener. key is the key of the configuration that names its address. The error is a
// *outbox.Problem that waiting does not solve.
func Listen(ctx context.Context, key, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, &outbox.Problem{Thing: key + " " + address, Reason: err.Error(),
			Remedy: "free the port or choose another", Fatal: true, Err: err}
	}
	return l, nil
}

// healthz answers while the process runs.
func healthz(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") }

// Operators returns the handler of all paths of the admin listener, behind the gate.
func Operators(cfg Config) http.Handler {
	g := newGate(cfg.Admin, cfg.Console.Hosts()...)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		state, err := cfg.Ready()
		switch {
		case err == nil:
			_, _ = fmt.Fprintln(w, state)
		case g.trusts(r):
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default: // the reason may name tables and servers
			http.Error(w, "not ready; the log has the reason, and so has this page for who gives the admin token", http.StatusServiceUnavailable)
		}
	})
	metrics := promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
	mux.Handle("GET /metrics", g.private(metrics))
	mux.Handle(api.Prefix+"/", cfg.API)
	mux.Handle(console.Prefix, cfg.Pages)
	mux.Handle(console.Prefix+"/", cfg.Pages)
	return countPanics(g.names(mux), cfg.Caught)
}

// Venues returns the handler of all paths of the listener for venues. There is no metric and no
// reason on it.
func Venues(cfg VenueConfig) http.Handler {
	g := &gate{required: true, hosts: cfg.Hosts()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz)
	mux.Handle(api.Prefix+"/", cfg.API)
	mux.Handle(console.Prefix, cfg.Pages)
	mux.Handle(console.Prefix+"/", cfg.Pages)
	return countPanics(g.names(mux), cfg.Caught)
}

// Serve answers requests until ctx ends. Requests under way then get adminGrace. It closes l. It
// calls caught with a panic of its own.
func Serve(ctx context.Context, l net.Listener, handler http.Handler, caught func(*panics.Error)) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTime,
		ReadTimeout:       requestTime,
		WriteTimeout:      30 * time.Second,
		// Short, so that idle connections do not take all places.
		IdleTimeout:    5 * time.Second,
		MaxHeaderBytes: 16 << 10,
		// The gate answers OPTIONS * as well.
		DisableGeneralOptionsHandler: true,
		// Streams end with it.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, panics.GuardFunc(caught, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminGrace)
		defer cancel()
		_ = server.Shutdown(grace)
		_ = server.Close()
	}))
	defer stop()
	if err := server.Serve(netutil.LimitListener(l, adminConnections)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// countPanics reports the panics of a handler to caught. net/http would log the value of a panic,
// which may be a secret. countPanics closes the connection without a message instead.
func countPanics(next http.Handler, caught func(*panics.Error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			value := recover()
			if value == nil {
				return
			}
			if value != http.ErrAbortHandler { //nolint:errorlint // net/http compares it in the same way
				caught(panics.Recovered(value))
			}
			panic(http.ErrAbortHandler)
		}()
		next.ServeHTTP(w, r)
	})
}
