package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/quintago/webhook-agent/agent/config"
)

// gate decides who may ask the admin listener what.
//
// It knows no cookies, so a page in somebody's browser cannot ask in that person's name. A page could still get at a listener without a
// token under a name of its own that leads to this address (DNS rebinding); therefore whoever gives no token must ask for the listener
// by its address or by a name that is known.
type gate struct {
	required bool
	token    [sha256.Size]byte // of the token, so that a comparison takes the same time whatever its length
	hosts    []string
}

func newGate(cfg config.Admin) *gate {
	return &gate{required: !cfg.Token.IsZero(), token: sha256.Sum256([]byte(cfg.Token.Reveal())), hosts: cfg.Hosts}
}

// trusts reports whether a request may see everything.
func (g *gate) trusts(r *http.Request) bool { return !g.required || g.hasToken(r) }

// hasToken reports whether a request carries the token (RFC 6750, section 2.1).
func (g *gate) hasToken(r *http.Request) bool {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	sum := sha256.Sum256([]byte(strings.TrimSpace(given)))
	return g.required && strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(sum[:], g.token[:]) == 1
}

// private lets only those through who are trusted.
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

// names refuses requests for a name that is not known, and keeps answers out of caches and of other people's pages.
func (g *gate) names(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		if !g.knows(r.Host) && !g.hasToken(r) {
			http.Error(w, "this name is not in admin.hosts; ask for the address, or give the admin token", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// knows reports whether a Host header names this listener: by an address, which no foreign page can be at, or by a known name. Browsers
// always send one; the checks of simple load balancers do not.
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
