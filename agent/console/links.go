package console

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/api"
)

const (
	// linkLife is how long a link can be used.
	linkLife = time.Minute
	// maxLinks is how many links may wait to be used.
	maxLinks = 100
)

// links are the tickets that were given out and not used yet. The zero value has none; now must be
// set. Any goroutine may call the methods.
type links struct {
	now func() time.Time
	mu  sync.Mutex
	// tickets has the tickets by their hashes: memory that leaks shows no ticket, and a look-up
	// takes no time that depends on one. mu guards it.
	tickets map[[sha256.Size]byte]link
}

// link is what a ticket is good for.
type link struct {
	caller access.Principal
	ends   time.Time
}

// give returns a new ticket for a caller, and when it ends. It returns false if too many wait.
func (l *links) give(caller access.Principal) (ticket string, ends time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	maps.DeleteFunc(l.tickets, func(_ [sha256.Size]byte, waits link) bool { return !now.Before(waits.ends) })
	if len(l.tickets) >= maxLinks {
		return "", time.Time{}, false
	}
	if l.tickets == nil {
		l.tickets = map[[sha256.Size]byte]link{}
	}
	text := make([]byte, 32)
	_, _ = rand.Read(text) // never fails
	ticket, ends = base64.RawURLEncoding.EncodeToString(text), now.Add(linkLife)
	l.tickets[sha256.Sum256([]byte(ticket))] = link{caller, ends}
	return ticket, ends, true
}

// take returns who a ticket is good for, and takes it away. It returns false if it is not good.
func (l *links) take(ticket string) (access.Principal, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hash := sha256.Sum256([]byte(ticket))
	known, ok := l.tickets[hash]
	delete(l.tickets, hash)
	if !ok || !l.now().Before(known.ends) {
		return access.Principal{}, false
	}
	return known.caller, true
}

// Link is the answer to POST /console/link: an address that signs an operator in once.
type Link struct {
	URL     string    `json:"url"`
	Expires time.Time `json:"expires"`
}

// makeLink gives a link to who has the operator's token. The command console asks for it.
func (d *door) makeLink(w http.ResponseWriter, r *http.Request) {
	p, err := d.verifier.Verify(r)
	if err == nil && p.Role() != access.RoleOperator {
		err = errors.New("the token is a venue's")
	}
	if err != nil {
		d.refused(r, "link", err)
		w.Header().Set("WWW-Authenticate", `Bearer realm="webhook-agent"`)
		api.WriteProblem(w, http.StatusUnauthorized, err.Error(), "give the operator's token (admin.token)")
		return
	}
	ticket, ends, ok := d.links.give(p)
	if !ok {
		w.Header().Set("Retry-After", "60")
		api.WriteProblem(w, http.StatusTooManyRequests, "too many links wait to be used", "wait a minute")
		return
	}
	origin := "http://" + r.Host
	if r.TLS != nil || strings.EqualFold(d.url, "https://"+r.Host) {
		origin = "https://" + r.Host
	}
	d.log.Info("a link to the console was made", "address", r.RemoteAddr)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(Link{origin + "/console/link/" + ticket, ends.UTC().Truncate(time.Second)}) // the caller may be gone
}

// useLink opens a session by a link. A look ahead by a browser, a mail scanner or a chat does not
// use it up.
func (d *door) useLink(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || looksAhead(r) {
		w.WriteHeader(http.StatusServiceUnavailable) // so that a browser keeps nothing of it
		return
	}
	if !d.takesCookies(w, r) {
		return
	}
	p, ok := d.links.take(r.PathValue("ticket"))
	if !ok {
		d.refused(r, "link", errors.New("the link was used, or has ended"))
		d.pages.refuse(w, r, http.StatusGone, "this link was used, or is older than a minute", "run webhook-agent console again, or sign in with the token at /console/signin")
		return
	}
	d.letIn(w, r, p, "link", home)
}

// looksAhead reports whether a browser asks for a page before somebody wants to see it.
func looksAhead(r *http.Request) bool {
	for _, name := range []string{"Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"} {
		if value := strings.ToLower(r.Header.Get(name)); strings.Contains(value, "prefetch") || strings.Contains(value, "prerender") || strings.Contains(value, "preview") {
			return true
		}
	}
	return false
}
