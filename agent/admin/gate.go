package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/quintago/webhook-agent/agent/api"
	"github.com/quintago/webhook-agent/agent/config"
)

// gate decides who may ask the admin listener for what.
//
// It uses no cookies; the console does, and guards what they may do (package console). But a page
// could reach a listener without a token under a host name of its own that resolves to this address
// (DNS rebinding). So a request without the token must name the listener by an address or by a
// known host name. The API takes no request without a token, and verifies it itself.
type gate struct {
	required bool
	// The hash of the token, so that a comparison takes the same time for every length.
	token [sha256.Size]byte
	hosts []string
}

func newGate(cfg config.Admin, hosts ...string) *gate {
	return &gate{required: !cfg.Token.IsZero(), token: sha256.Sum256([]byte(cfg.Token.Reveal())), hosts: slices.Concat(cfg.Hosts, hosts)}
}

// trusts reports whether a request may see everything.
func (g *gate) trusts(r *http.Request) bool { return !g.required || g.hasToken(r) }

// hasToken reports whether a request carries the token (RFC 6750, section 2.1).
func (g *gate) hasToken(r *http.Request) bool {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	sum := sha256.Sum256([]byte(strings.TrimSpace(given)))
	return g.required && strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(sum[:], g.token[:]) == 1
}

// private answers 401 to a request that may not see everything.
func (g *gate) private(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !g.trusts(r) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="webhook-agent"`)
			http.Error(w, "give the admin token: Authorization: Bearer TOKEN", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// names refuses a request for an unknown host name. It also sets headers that keep answers out of
// caches and out of pages of other origins.
func (g *gate) names(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		isAPI := strings.HasPrefix(r.URL.Path, api.Prefix+"/")
		switch {
		case g.knows(r.Host), g.hasToken(r):
		case isAPI && r.Header.Get("Authorization") != "": // the API verifies it
		case isAPI:
			api.WriteProblem(w, http.StatusMisdirectedRequest, "this name is not in admin.hosts, and not that of console.url", "ask for the address, or give a token")
			return
		default:
			http.Error(w, "this name is not in admin.hosts; ask for the address, or give the admin token", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// knows reports whether a Host header names this listener, by an address or by a known host name.
// No foreign page can have an address as its host name. Browsers always send a Host header; simple
// load balancers may send none.
func (g *gate) knows(host string) bool {
	if host == "" {
		return true
	}
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return true
	}
	same := func(known string) bool { return strings.EqualFold(known, strings.TrimSuffix(name, ".")) }
	return same("localhost") || slices.ContainsFunc(g.hosts, same)
}
