package console

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"html"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/quintago/webhook-agent/agent/access"
)

const (
	// operatorSession is how long the operator's session lasts.
	operatorSession = 8 * time.Hour
	// operatorCookie is the name of the cookie with the operator's session. A browser takes a name
	// with this prefix only from a page of https or of its own machine, for the host itself and for
	// all its paths. So no other host of the domain can set it.
	operatorCookie = "__Host-wh-operator"
	// maxForm bounds the body of a form, in bytes.
	maxForm = 16 << 10
)

// pages shows what a door answers.
type pages interface {
	// refuse answers with a page that says what is wrong and what to do.
	refuse(w http.ResponseWriter, r *http.Request, status int, reason, remedy string)
	// render answers with a page of templates/.
	render(w http.ResponseWriter, r *http.Request, status int, page string, data any)
}

// door decides who may see a page. It opens and ends sessions.
//
// An operator signs in with admin.token by a form, or by a link that the command console asks for.
// A venue's user never signs in: the app's page posts a token of the venue by a form into a frame.
// Each gets a cookie with a session (access.Sessions). A venue's cookie has the venue in its name,
// and is good for that venue's pages alone, so two tabs with two venues do not disturb each other.
type door struct {
	doorConfig
	pages pages
	links links
	// guesses bounds the attempts to sign in by the form, of all people together.
	guesses *rate.Limiter
	// refusals bounds the lines in the log about those who were refused, and unsaid counts the
	// others.
	refusals *rate.Limiter
	unsaid   atomic.Int64
}

// doorConfig is what a door needs to know.
type doorConfig struct {
	verifier *access.Verifier
	sessions *access.Sessions
	// operators is false at the listener for venues: nobody signs in there, and an operator's
	// session is none.
	operators bool
	// hasToken reports whether admin.token is set.
	hasToken bool
	origins  []string      // console.origins
	url      string        // console.url
	life     time.Duration // console.session
	log      *slog.Logger
	now      func() time.Time
}

func newDoor(cfg doorConfig, p pages) *door {
	return &door{
		doorConfig: cfg, pages: p, links: links{now: cfg.now},
		guesses: rate.NewLimiter(rate.Every(time.Second), 10), refusals: rate.NewLimiter(rate.Every(time.Second/5), 50),
	}
}

// register adds the door's own paths.
func (d *door) register(mux *http.ServeMux) {
	mux.HandleFunc("POST /console/session", d.openVenue)
	if !d.operators {
		return
	}
	mux.HandleFunc("GET /console/signin", d.showSignIn)
	mux.HandleFunc("POST /console/signin", d.signIn)
	mux.HandleFunc("POST /console/signout", d.signOut)
	mux.HandleFunc("POST /console/link", d.makeLink)
	mux.HandleFunc("GET /console/link/{ticket}", d.useLink)
}

// guard refuses requests that change something if a page of another origin sends them. The one
// exception looks at the origin itself.
func (d *door) guard(next http.Handler) http.Handler {
	protection := http.NewCrossOriginProtection()
	protection.AddInsecureBypassPattern("POST /console/session")
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.pages.refuse(w, r, http.StatusForbidden, "a page of another origin sent this", "open the console itself, and do it there")
	}))
	return protection.Handler(next)
}

// principal returns who asks for a page of a venue, or for a page of the operators if venue is "".
// A venue's pages are for its own session first, then for the operator's. The operator's does not
// count within a frame: what the app shows in its pages is for the app's users.
func (d *door) principal(r *http.Request, venue string) (access.Principal, error) {
	if venue != "" {
		if p, err := d.session(r, venueCookie(venue), access.RoleVenue, venue); err == nil {
			return p, nil
		}
	}
	if !d.operators || framed(r) {
		return access.Principal{}, access.ErrNoSession
	}
	return d.session(r, operatorCookie, access.RoleOperator, "")
}

// session returns the caller of the session in a cookie, if it is of that role and venue. A browser
// may send two cookies of one name, one of the frame and one of the site.
func (d *door) session(r *http.Request, cookie string, role access.Role, venue string) (access.Principal, error) {
	for _, c := range r.CookiesNamed(cookie) {
		if p, err := d.sessions.Open(c.Value, d.now()); err == nil && p.Role() == role && p.Venue() == venue {
			return p, nil
		}
	}
	return access.Principal{}, access.ErrNoSession
}

// venueCookie returns the name of the cookie with a session of a venue.
func venueCookie(venue string) string {
	sum := sha256.Sum256([]byte(venue))
	return "__Host-wh-" + hex.EncodeToString(sum[:4])
}

// turnAway answers a request for a page that principal returned an error for. An operator is led to
// the form and comes back. A page in a frame learns that its session has ended, and so does its
// parent. Whose form was not done is told so.
func (d *door) turnAway(w http.ResponseWriter, r *http.Request, venue string) {
	navigates := r.Method == http.MethodGet && slices.Contains([]string{"", "navigate"}, r.Header.Get("Sec-Fetch-Mode"))
	here, _ := pathBelow(r.URL.RequestURI(), "/console/")
	inTab := r.Header.Get("Sec-Fetch-Dest") == "document"
	switch {
	case !d.operators && venue == "":
		d.pages.refuse(w, r, http.StatusNotFound, "there is no such page here", "operators use the agent's other address (admin.listen)")
	case framed(r) || !d.operators, venue != "" && !navigates && !inTab:
		page := expiredPage{Origins: strings.Join(d.origins, " "), Next: here}
		if r.Method == http.MethodPost {
			page.Next, page.Undone = formPage(r, venue), true
		}
		d.pages.render(w, r, http.StatusUnauthorized, "expired", page)
	case !navigates:
		d.pages.refuse(w, r, http.StatusUnauthorized, "the session has ended, so nothing was changed", "sign in again, then repeat what you did")
	case strings.EqualFold(r.Header.Get("Sec-Fetch-Site"), "cross-site"):
		// Somebody followed a link on a page of another site, so the browser kept the cookie back.
		// It sends the cookie when this page asks once more.
		goOn(w, cmp.Or(here, home))
	default:
		http.Redirect(w, r, "/console/signin?next="+url.QueryEscape(here), http.StatusSeeOther)
	}
}

// expiredPage is the data of the page that a frame shows when its session has ended.
type expiredPage struct {
	// Origins are those of the pages that may learn of it, with blanks between them.
	Origins string
	// Next is the page that was asked for. After a form it is the page that had the form, which says
	// that nothing was changed.
	Next string
	// Undone reports that a form was sent.
	Undone bool
}

// formPage returns the page of a venue that had the form which was sent, or that of its endpoints where
// the browser does not say which one it was.
func formPage(r *http.Request, venue string) string {
	pages := venuePath(venue)
	u, err := url.Parse(r.Referer())
	if err == nil && u.EscapedPath() != pages { // which leads on to the endpoints
		u = &url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: withQuery(u.Query(), "done", undone)}
		if page, ok := pathBelow(u.String(), pages); ok {
			return page
		}
	}
	return pages + "endpoints?done=" + undone
}

// goOn answers with a page that opens another one of this origin by itself.
func goOn(w http.ResponseWriter, path string) {
	w.Header().Set("Refresh", "0; url="+path)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte(`<!doctype html><html lang="en"><title>Webhooks</title><a href="` + html.EscapeString(path) + `">Go on</a>`))
}

// framed reports whether a page is asked for that stands within another one.
func framed(r *http.Request) bool {
	return slices.Contains([]string{"iframe", "frame", "object", "embed", "fencedframe"}, strings.ToLower(r.Header.Get("Sec-Fetch-Dest")))
}

// setSession gives the browser a session and reports whether it did. It answers itself if it did
// not.
func (d *door) setSession(w http.ResponseWriter, r *http.Request, p access.Principal, cookie http.Cookie, life time.Duration) bool {
	text, err := d.sessions.Seal(p, d.now().Add(life))
	if err != nil {
		d.log.Error("no session is opened", "error", err)
		d.pages.refuse(w, r, http.StatusInternalServerError, "the session could not be made", "the operator finds the reason in the agent's log")
		return false
	}
	cookie.Value, cookie.MaxAge = text, int(life/time.Second)
	cookie.Path, cookie.Secure, cookie.HttpOnly = "/", true, true
	http.SetCookie(w, &cookie)
	return true
}

// takesCookies reports whether the browser keeps a session of this page. It answers itself if it
// does not: a browser drops such cookies, without a word, from a page of plain http that is not on
// its own machine.
func (d *door) takesCookies(w http.ResponseWriter, r *http.Request) bool {
	if d.trusted(r) {
		return true
	}
	d.pages.refuse(w, r, http.StatusForbidden, "this address is plain http, and a browser keeps no session of such a page",
		"use the https address, or a tunnel to the agent's machine (ssh -L 8480:127.0.0.1:8480 HOST) and http://127.0.0.1:8480/console/")
	return false
}

// trusted reports whether a browser has this page from https or from its own machine.
func (d *door) trusted(r *http.Request) bool {
	if r.TLS != nil || r.Header.Get("Sec-Fetch-Site") != "" { // a browser sends this field from such pages alone
		return true
	}
	if u, err := url.Parse(d.url); err == nil && u.Scheme == "https" && strings.EqualFold(u.Host, r.Host) {
		return true // a proxy with TLS stands in front
	}
	name := r.Host
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	addr, err := netip.ParseAddr(strings.Trim(name, "[]"))
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return err == nil && addr.IsLoopback() || name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// refused logs that somebody was refused, and why. A flood of them is only counted.
func (d *door) refused(r *http.Request, how string, why error) {
	if !d.refusals.AllowN(d.now(), 1) {
		d.unsaid.Add(1)
		return
	}
	attrs := []any{"how", how, "address", r.RemoteAddr, "reason", why}
	if n := d.unsaid.Swap(0); n > 0 {
		attrs = append(attrs, "unlogged", n)
	}
	d.log.Warn("the console refuses somebody", attrs...)
}
