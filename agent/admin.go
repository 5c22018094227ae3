package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/panics"
)

const (
	// adminGrace is how long requests under way may take when the agent ends.
	adminGrace = time.Second
	// adminConnections bounds the connections that are open at the same time.
	adminConnections = 256
)

// listenAdmin opens the admin listener.
func listenAdmin(ctx context.Context, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, &outbox.Problem{Thing: "admin.listen " + address, Reason: reason(err).Error(),
			Remedy: "free the port or choose another", Fatal: true, Err: err}
	}
	return l, nil
}

// adminRoutes are the routes behind the gate.
func (a *agent) adminRoutes(g *gate) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		state, err := a.ready()
		switch {
		case err == nil:
			_, _ = fmt.Fprintln(w, state)
		case g.trusts(r):
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default: // a reason names tables and servers
			http.Error(w, "not ready; the log has the reason, and so has this page for who gives the admin token", http.StatusServiceUnavailable)
		}
	})
	metrics := promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
	mux.Handle("GET /metrics", g.private(metrics))
	return a.countPanics(g.names(mux))
}

// serveAdmin answers requests until ctx ends.
func (a *agent) serveAdmin(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           a.adminRoutes(newGate(a.cfg.Admin)),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       5 * time.Second, // so that idle connections of others do not take all places
		MaxHeaderBytes:    16 << 10,
	}
	stop := context.AfterFunc(ctx, panics.GuardFunc(a.caught, func() {
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
