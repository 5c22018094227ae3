package console

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/api"
	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// pageTime bounds the work for a page. The pool ends its queries before.
const pageTime = 15 * time.Second

// visit is a request for a page by somebody who may ask for it.
type visit struct {
	h      *Handler
	w      http.ResponseWriter
	r      *http.Request
	caller access.Principal
	venue  string // in the path; "" on an operators' page
	view   outbox.View
	form   url.Values // of a POST
}

// serve returns the handler of a route.
func (h *Handler) serve(p route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		venue := r.PathValue("venue")
		caller, err := h.door.principal(r, venue)
		if err != nil {
			h.door.turnAway(w, r, venue)
			return
		}
		if p.manage && !caller.MayManage() {
			h.refuse(w, r, http.StatusForbidden, "you may look, and change nothing here", "ask somebody who may change webhooks in the app")
			return
		}
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil { // r.URL.Query would leave out a part, and the page show more than was asked for
			h.refuse(w, r, http.StatusBadRequest, "the address of this page cannot be read", "go back, and choose again what to show")
			return
		}
		if outbox.CheckText(r.URL.Path) != nil || outbox.CheckText(r.URL.RawQuery) != nil || hasBadText(query) {
			h.refuse(w, r, http.StatusNotFound, "there is no such page", "go back to the beginning")
			return
		}
		v := &visit{h: h, w: w, r: r, caller: caller, venue: venue, view: caller.View(h.cfg.DB)}
		if venue != "" {
			v.view = h.cfg.DB.Venue(venue).View()
		}
		if r.Method == http.MethodPost {
			if v.form, err = readForm(w, r); err != nil || hasBadText(v.form) {
				h.refuse(w, r, http.StatusBadRequest, "the form cannot be read", "go back, and fill it in again")
				return
			}
		}
		v.run(p)
	})
}

// hasBadText reports whether a field is no text that PostgreSQL takes.
func hasBadText(fields url.Values) bool {
	for name, values := range fields {
		for _, value := range values {
			if outbox.CheckText(name) != nil || outbox.CheckText(value) != nil {
				return true
			}
		}
	}
	return false
}

// run does what the route does, within the limits that the pages share with the API.
func (v *visit) run(p route) {
	l, name := v.h.cfg.Limits, v.caller.Name()
	if !p.live {
		if wait := v.turn(v.r.Method == http.MethodPost && p.manage); wait > 0 {
			v.tooMany(wait)
			return
		}
		ctx := v.r.Context()
		if p.slow { // it takes the place of a stream
			done, ok := l.Stream(name)
			if !ok {
				v.tooMany(5 * time.Second)
				return
			}
			defer done()
		} else {
			leave, wait, err := l.Enter(ctx, name)
			if err != nil || wait > 0 {
				v.tooMany(max(wait, time.Second))
				return
			}
			defer leave()
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, pageTime)
			defer cancel()
			defer func(began time.Time) { l.Worked(name, time.Since(began)) }(time.Now())
		}
		v.r = v.r.WithContext(ctx)
	}
	if err := p.do(v); err != nil {
		v.fail(err)
		return
	}
	if p.manage && v.r.Method == http.MethodPost {
		v.log("changed by the console", "page", p.pattern)
	}
}

// turns is how often a page asks the limits, with a pause in between, before it is refused. A person
// who clicks quickly waits a moment, and does not have to ask again. A program is slowed down as well.
const turns = 3

// turn waits until the limits let a request through. It returns how long the visitor has to wait if
// they still do not, else 0.
func (v *visit) turn(write bool) (wait time.Duration) {
	l := v.h.cfg.Limits
	for range turns {
		if wait = l.Request(v.caller.Name(), write); wait <= 0 {
			return 0
		}
		l.HoldBack(v.ctx())
	}
	return wait
}

// log logs what somebody did. It logs ids alone.
func (v *visit) log(message string, args ...any) {
	args = append(args, "by", string(v.caller.Role()))
	if v.caller.Role() == access.RoleVenue {
		args = append(args, "subject", v.caller.Subject())
	}
	for _, name := range []string{"venue", "endpoint", "event", "replay"} {
		if id := v.r.PathValue(name); id != "" {
			args = append(args, name, sink.Printable(id))
		}
	}
	v.h.cfg.Log.Info(message, args...)
}

func (v *visit) tooMany(wait time.Duration) {
	v.w.Header().Set("Retry-After", api.RetryAfter(wait))
	v.h.refuse(v.w, v.r, http.StatusTooManyRequests, "these are too many requests at a time", "wait a moment, then load the page again")
}

// fail answers with the page of an error.
func (v *visit) fail(err error) {
	if p := api.Explain(err); p != nil {
		// The remedies of the API name its paths.
		remedy := p.Remedy
		if p.Status == http.StatusNotFound || strings.Contains(remedy, "/api/") {
			remedy = "go back to the list"
		}
		reason := p.Reason
		if len(p.Errors) > 0 { // the name of the field is not one of the form
			reason, remedy = "what was filled in is not right", p.Errors[0].Message
		}
		v.h.refuse(v.w, v.r, p.Status, reason, remedy)
		return
	}
	if !errors.Is(err, context.Canceled) {
		v.h.cfg.Log.Error("the console cannot show a page", "path", sink.Printable(v.r.URL.Path), "error", err)
	}
	v.w.Header().Set("Retry-After", "5")
	v.h.refuse(v.w, v.r, http.StatusServiceUnavailable, "the database does not answer, or not as expected", "try again; the operator finds the reason in the agent's log")
}

func (v *visit) ctx() context.Context { return v.r.Context() }

// desk returns what the visitor may work with.
func (v *visit) desk() *manage.Desk {
	return &manage.Desk{Config: v.h.cfg.Config, View: v.view, Webhook: v.h.cfg.Webhook}
}

// isOperator reports whether the visitor is an operator, who sees no URLs and no data of venues.
func (v *visit) isOperator() bool { return v.caller.Role() == access.RoleOperator }

// base begins the paths of the pages that the visitor is on.
func (v *visit) base() string { return basePath(v.venue) }

func basePath(venue string) string {
	if venue == "" {
		return Prefix
	}
	return strings.TrimSuffix(venuePath(venue), "/")
}

// path returns the path of a page from its parts.
func (v *visit) path(parts ...string) string { return joinPath(v.base(), parts...) }

func joinPath(base string, parts ...string) string {
	for _, part := range parts {
		base += "/" + url.PathEscape(part)
	}
	return base
}

// show answers with a page.
func (v *visit) show(page string, data any) error {
	v.h.renderFor(v.w, v.r, v, http.StatusOK, page, data)
	return nil
}

// showForm answers with the page of a form that was not filled in well.
func (v *visit) showForm(page string, data any) error {
	v.h.renderFor(v.w, v.r, v, http.StatusUnprocessableEntity, page, data)
	return nil
}

// goTo leads to another page after a form. done is the key of a message that it shows, or "".
func (v *visit) goTo(done string, parts ...string) error {
	path := v.path(parts...)
	if done != "" {
		path += "?done=" + done
	}
	http.Redirect(v.w, v.r, path, http.StatusSeeOther)
	return nil
}

// json answers a script of a page.
func (v *visit) json(data any) error {
	text, err := json.Marshal(data)
	if err != nil {
		return err
	}
	v.w.Header().Set("Content-Type", "application/json")
	write(v.w, v.r, http.StatusOK, text)
	return nil
}

// fieldErrors returns what is wrong with the fields of a form, by field. It is empty where the error
// is about nothing that was filled in.
func fieldErrors(err error) map[string]string {
	p := api.Explain(err)
	if p == nil {
		return nil
	}
	fields := map[string]string{}
	for _, f := range p.Errors {
		name := strings.TrimPrefix(f.Location, "body.")
		if fields[name] == "" {
			fields[name] = f.Message
		}
	}
	return fields
}

func toEndpoints(v *visit) error { return v.goTo("", "endpoints") }

// toEndpoint leads from the address of a form to the page of the endpoint that has it. Who reloads the
// answer to the form asks for that address.
func toEndpoint(v *visit) error {
	to := url.URL{RawQuery: v.r.URL.RawQuery}
	http.Redirect(v.w, v.r, v.path("endpoints", v.r.PathValue("endpoint"))+to.String(), http.StatusSeeOther)
	return nil
}
