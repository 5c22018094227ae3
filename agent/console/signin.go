package console

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/quintago/webhook-agent/agent/access"
)

// home is the first page of operators.
const home = "/console/"

// signInPage is the data of the form.
type signInPage struct {
	// Next is where to go afterwards.
	Next string
	// Problem says why the last attempt failed, "" for the first one.
	Problem string
}

// mayTry answers itself, and returns false, if nobody can sign in here.
func (d *door) mayTry(w http.ResponseWriter, r *http.Request) bool {
	if !d.hasToken {
		d.pages.refuse(w, r, http.StatusForbidden, "nobody can sign in, since admin.token is not set",
			"make a token with openssl rand -hex 32, set admin.token in the agent's configuration, and restart the agent")
		return false
	}
	return d.takesCookies(w, r)
}

func (d *door) showSignIn(w http.ResponseWriter, r *http.Request) {
	next, _ := pathBelow(r.URL.Query().Get("next"), home)
	if _, err := d.principal(r, ""); err == nil {
		http.Redirect(w, r, cmp.Or(next, home), http.StatusSeeOther)
		return
	}
	if !d.mayTry(w, r) {
		return
	}
	d.pages.render(w, r, http.StatusOK, "signin", signInPage{Next: next})
}

// signIn opens a session for who has the operator's token.
func (d *door) signIn(w http.ResponseWriter, r *http.Request) {
	if !d.mayTry(w, r) {
		return
	}
	// Who is kept out by others that guess has a link of the command console.
	if !d.guesses.AllowN(d.now(), 1) {
		w.Header().Set("Retry-After", "5")
		d.refused(r, "form", errors.New("there were too many attempts"))
		d.pages.refuse(w, r, http.StatusTooManyRequests, "there were too many attempts to sign in", "wait some seconds, or use the link that webhook-agent console prints")
		return
	}
	form, err := readForm(w, r)
	if err != nil {
		d.pages.refuse(w, r, http.StatusBadRequest, "the form cannot be read", "open the page and fill it in again")
		return
	}
	next, _ := pathBelow(form.Get("next"), home)
	p, err := d.verifier.VerifyToken(strings.TrimSpace(form.Get("token")))
	switch {
	case err == nil && p.Role() != access.RoleOperator:
		err = errors.New("the token is a venue's; operators sign in with admin.token")
	case errors.Is(err, access.ErrNoToken):
		err = errors.New("paste the token")
	case err != nil:
		// What is wrong with a venue's token helps nobody here.
		err = errors.New("this is not the operator's token (admin.token)")
	}
	if err != nil {
		d.refused(r, "form", err)
		d.pages.render(w, r, http.StatusForbidden, "signin", signInPage{Next: next, Problem: err.Error()})
		return
	}
	d.letIn(w, r, p, "form", cmp.Or(next, home))
}

// letIn opens an operator's session and leads to a page.
func (d *door) letIn(w http.ResponseWriter, r *http.Request, p access.Principal, how, next string) {
	if !d.setSession(w, r, p, http.Cookie{Name: operatorCookie, SameSite: http.SameSiteStrictMode}, operatorSession) {
		return
	}
	d.log.Info("an operator signed in to the console", "how", how, "address", r.RemoteAddr)
	if strings.EqualFold(r.Header.Get("Sec-Fetch-Site"), "cross-site") {
		// The link stood on a page of another site: the browser would not send the new cookie along
		// with a redirect.
		goOn(w, next)
		return
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
}

// signOut ends the operator's session in this browser.
func (d *door) signOut(w http.ResponseWriter, r *http.Request) {
	if _, err := d.principal(r, ""); err == nil {
		d.log.Info("an operator signed out of the console", "address", r.RemoteAddr)
	}
	http.SetCookie(w, &http.Cookie{Name: operatorCookie, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/console/signin", http.StatusSeeOther)
}

// openVenue opens a session of a venue for the user of an app, whose page posts a token into a
// frame. The field Origin is set by the browser, so no other page can show somebody a venue of its
// choice.
func (d *door) openVenue(w http.ResponseWriter, r *http.Request) {
	origins := r.Header.Values("Origin")
	if len(origins) != 1 || !slices.Contains(d.origins, origins[0]) {
		d.refused(r, "app", errors.New("the page that asks is not of an origin in console.origins"))
		d.pages.refuse(w, r, http.StatusForbidden, "this page is not shown within pages of another origin",
			"add the origin of the page around it to console.origins in the agent's configuration")
		return
	}
	if !d.takesCookies(w, r) {
		return
	}
	form, err := readForm(w, r)
	if err != nil {
		d.pages.refuse(w, r, http.StatusBadRequest, "the form cannot be read", "post the fields token and next as application/x-www-form-urlencoded")
		return
	}
	p, err := d.verifier.VerifyToken(form.Get("token"))
	if err == nil && p.Role() != access.RoleVenue {
		err = errors.New("the token is the operator's; the app signs one for the venue with a key of console.keys")
	}
	if err == nil && strings.Trim(p.Venue(), ".") == "" {
		err = errors.New("the venue has only dots in its id, which no address can hold")
	}
	if err != nil {
		d.refused(r, "app", err)
		d.pages.refuse(w, r, http.StatusForbidden, "the app's token is not accepted", err.Error())
		return
	}
	cookie := http.Cookie{Name: venueCookie(p.Venue()), SameSite: http.SameSiteStrictMode}
	if !slices.Contains([]string{"same-origin", "same-site"}, r.Header.Get("Sec-Fetch-Site")) {
		// Within a page of another site a browser keeps only a cookie for this pair of sites.
		cookie.SameSite, cookie.Partitioned = http.SameSiteNoneMode, true
	}
	if !d.setSession(w, r, p, cookie, d.life) {
		return
	}
	d.log.Info("a venue's user opened the console", "venue", p.Venue(), "user", p.Subject(), "scope", p.Scope(), "origin", origins[0], "address", r.RemoteAddr)
	pages := venuePath(p.Venue())
	next, ok := pathBelow(form.Get("next"), pages)
	if !ok {
		// It may also be written without what all pages of the venue begin with.
		next, ok = pathBelow(pages+strings.TrimPrefix(form.Get("next"), "/"), pages)
	}
	if !ok || next == pages {
		next = pages + "endpoints"
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
}

// venuePath returns what the paths of a venue's pages begin with.
func venuePath(venue string) string { return "/console/v/" + url.PathEscape(venue) + "/" }

// readForm returns the fields of a form. Those in the address are not among them: they would be in
// logs.
func readForm(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	err := r.ParseForm()
	return r.PostForm, err
}

// maxNext bounds a path to go on with, in bytes.
const maxNext = 2000

// pathBelow returns a path with its query if it is one of this origin below prefix, which ends in
// /. Browsers read an address in more ways than url.Parse does: they take a backslash for a slash,
// and leave out line breaks and tabs. So whatever is unusual is refused.
func pathBelow(next, prefix string) (string, bool) {
	unusual := func(c rune) bool { return c <= ' ' || c > '~' || c == '\\' }
	if len(next) > maxNext || strings.ContainsFunc(next, unusual) {
		return "", false
	}
	u, err := url.Parse(next)
	if err != nil || u.Scheme != "" || u.Opaque != "" || u.User != nil || u.Host != "" {
		return "", false
	}
	u.Fragment, u.RawFragment = "", ""
	whole := path.Clean(u.Path)
	if strings.HasSuffix(u.Path, "/") && whole != "/" {
		whole += "/"
	}
	if whole != u.Path || !strings.HasPrefix(u.EscapedPath(), prefix) || strings.ContainsFunc(u.Path, func(c rune) bool { return c < ' ' || c == '\\' || c == 0x7f }) {
		return "", false
	}
	return u.String(), true
}
