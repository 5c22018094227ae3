package console

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

const (
	// endpointsPerPage is how many endpoints a list shows, each with its newest outcomes.
	endpointsPerPage = 25
	outcomesShown    = 32
)

// endpointRow is an endpoint in a list, or on its page.
type endpointRow struct {
	outbox.EndpointInfo
	Host         string
	DisableAfter int
	Outcomes     []outbox.Outcome
}

// State is that of the API, or failing where attempts have failed since the last success.
func (e endpointRow) StateShown() string {
	if e.State == outbox.StateEnabled && e.ConsecutiveFailures > 0 {
		return "failing"
	}
	return e.State
}

// row returns an endpoint as the visitor may see it.
func (v *visit) row(e outbox.EndpointInfo) endpointRow {
	host := hostOf(e.URL)
	if v.isOperator() {
		e.URL = sink.RedactURL(e.URL)
	}
	return endpointRow{EndpointInfo: e, Host: host, DisableAfter: v.h.cfg.Config.Delivery.DisableAfter}
}

// hostOf returns the host of a URL, or all of it where it has none.
func hostOf(text string) string {
	if u, err := url.Parse(text); err == nil && u.Host != "" {
		return u.Host
	}
	return sink.RedactURL(text)
}

// endpointsPage is the list of endpoints.
type endpointsPage struct {
	Rows         []endpointRow
	State, Query string
	VenueFilter  string // of an operator
	Filtered     bool
	Next         string // the query of the next page, or ""
	Later        bool   // it is not the first page
}

func (h *Handler) endpoints(v *visit) error {
	q := v.r.URL.Query()
	f := outbox.EndpointFilter{Query: strings.TrimSpace(q.Get("query")), After: q.Get("after"), Limit: endpointsPerPage + 1}
	if f.State = q.Get("state"); f.State != "" && !slices.Contains([]string{outbox.StateEnabled, outbox.StateDisabled, outbox.StateUnusable}, f.State) {
		return &manage.FieldError{Field: "state", Err: errors.New("the state is none of enabled, disabled or unusable")}
	}
	if v.venue == "" {
		f.Venue = strings.TrimSpace(q.Get("venue"))
	}
	found, err := v.view.Endpoints(v.ctx(), f)
	if err != nil {
		return err
	}
	page := endpointsPage{State: f.State, Query: f.Query, VenueFilter: f.Venue, Later: f.After != ""}
	page.Filtered = f.State != "" || f.Query != "" || f.Venue != ""
	if len(found) > endpointsPerPage {
		found = found[:endpointsPerPage]
		page.Next = withQuery(v.r.URL.Query(), "after", found[len(found)-1].ID)
	}
	ids := make([]string, len(found))
	for i, e := range found {
		ids[i] = e.ID
	}
	outcomes, err := v.view.Outcomes(v.ctx(), ids, outcomesShown)
	if err != nil {
		return err
	}
	for _, e := range found {
		row := v.row(e)
		row.Outcomes = outcomes[e.ID]
		page.Rows = append(page.Rows, row)
	}
	return v.show("endpoints", page)
}

// eventGroup is the types of the catalogue with one first word.
type eventGroup struct {
	Name    string // the first word
	Pattern string // all of the group
	Chosen  bool   // the pattern is
	Types   []eventChoice
}

// eventChoice is a type of the catalogue in a form.
type eventChoice struct {
	outbox.EventTypeInfo
	Chosen bool
}

// endpointForm is the form of a new endpoint, or of a change.
type endpointForm struct {
	ID          string // "" for a new one
	VenueField  string // which an operator names
	AskVenue    bool
	URL         string
	HiddenURL   string // the host of a URL that the operator does not see
	Description string
	All         bool // the pattern *
	Groups      []eventGroup
	Others      string // event types that the catalogue does not have, separated by blanks
	Updated     string // when the endpoint was last changed, to find that it was meanwhile
	Repeated    string // names the form, so that it makes nothing twice
	// Now is the endpoint where it was changed since the form was opened, else nil.
	Now    *endpointRow
	Errors map[string]string
	Hints  []manage.Hint
}

// choose sets what a form shows as chosen.
func (f *endpointForm) choose(ctx context.Context, view outbox.View, events []string) error {
	types, err := view.EventTypes(ctx)
	if err != nil {
		return err
	}
	f.All = slices.Contains(events, "*")
	known := []string{"*"}
	for _, t := range types {
		name, _, _ := strings.Cut(t.Name, ".")
		if len(f.Groups) == 0 || f.Groups[len(f.Groups)-1].Name != name {
			f.Groups = append(f.Groups, eventGroup{Name: name, Pattern: name + ".*", Chosen: slices.Contains(events, name+".*")})
			known = append(known, name+".*")
		}
		group := &f.Groups[len(f.Groups)-1]
		group.Types = append(group.Types, eventChoice{t, slices.Contains(events, t.Name)})
		known = append(known, t.Name)
	}
	var others []string
	for _, event := range events {
		if !slices.Contains(known, event) {
			others = append(others, event)
		}
	}
	f.Others = strings.Join(others, " ")
	return nil
}

// chosenEvents returns the event types of a form: those that are ticked, and those that are written.
func chosenEvents(form url.Values) []string {
	events := slices.Clone(form["events"])
	for _, event := range strings.FieldsFunc(form.Get("others"), func(r rune) bool { return r == ' ' || r == ',' || r == '\n' || r == '\r' || r == '\t' }) {
		if !slices.Contains(events, event) {
			events = append(events, event)
		}
	}
	return events
}

func (h *Handler) newEndpoint(v *visit) error {
	form := endpointForm{AskVenue: v.venue == "", VenueField: v.r.URL.Query().Get("venue"), Repeated: newKey()}
	if err := form.choose(v.ctx(), v.view, nil); err != nil {
		return err
	}
	return v.show("endpoint_form", form)
}

// secretPage shows a secret, which no other page does.
type secretPage struct {
	ID, Host, Secret string
	Rotated          bool
	Until            *time.Time // when the former secret stops signing
	Hints            []manage.Hint
}

func (h *Handler) createEndpoint(v *visit) error {
	events := chosenEvents(v.form)
	n := manage.NewEndpoint{URL: secret.New(strings.TrimSpace(v.form.Get("url"))), Events: events, Description: strings.TrimSpace(v.form.Get("description"))}
	form := endpointForm{AskVenue: v.venue == "", VenueField: strings.TrimSpace(v.form.Get("venue")), URL: v.form.Get("url"), Description: n.Description, Repeated: v.form.Get("key")}
	n.Idempotency = once(v.form)
	if form.AskVenue {
		n.Venue = form.VenueField
		if n.Venue == "" {
			form.Errors = map[string]string{"venue": "name the venue whose events are sent"}
		}
	}
	if form.Errors == nil {
		added, err := v.desk().Add(v.ctx(), n)
		if err == nil {
			_, _, hints, err := v.desk().CheckEndpoint(v.ctx(), "", events)
			if err != nil {
				return err
			}
			v.w.Header().Set("Content-Location", v.path("endpoints", added.ID))
			return v.show("secret", secretPage{ID: added.ID, Host: hostOf(added.URL), Secret: added.Secret, Hints: hints})
		}
		if form.Errors = fieldErrors(err); len(form.Errors) == 0 {
			return err
		}
	}
	if err := form.choose(v.ctx(), v.view, events); err != nil {
		return err
	}
	return v.showForm("endpoint_form", form)
}

// newKey returns a name for a form that is not sent yet.
func newKey() string { return rand.Text() }

// once names a form that may be sent twice, by two clicks for example. A page that a browser has kept
// may be filled in anew and has its former key then, so what was filled in belongs to the name.
func once(form url.Values) outbox.Idempotency {
	if form.Get("key") == "" { // it was not made by a page
		return outbox.Idempotency{Key: "console " + newKey()}
	}
	sum := sha256.Sum256([]byte(form.Encode()))
	return outbox.Idempotency{Key: "console " + hex.EncodeToString(sum[:]), Hash: sum[:]}
}

// verdict is what a form's script learns of a URL and of event types before they are sent.
type verdict struct {
	URL    string        `json:"url"`
	Events string        `json:"events"`
	Hints  []manage.Hint `json:"hints"`
}

func (h *Handler) checkEndpoint(v *visit) error {
	wrongURL, wrongEvents, hints, err := v.desk().CheckEndpoint(v.ctx(), strings.TrimSpace(v.form.Get("url")), chosenEvents(v.form))
	if err != nil {
		return err
	}
	texts := h.pages.texts[languageOf(v.r)]
	say := func(err error) string {
		for _, text := range fieldErrors(err) {
			return texts.say(text)
		}
		return ""
	}
	return v.json(verdict{say(wrongURL), say(wrongEvents), hints})
}

func (h *Handler) editEndpoint(v *visit) error {
	e, err := v.view.Endpoint(v.ctx(), v.r.PathValue("endpoint"))
	if err != nil {
		return err
	}
	form := endpointForm{ID: e.ID, URL: e.URL, Description: e.Description, Updated: stamp(e.Updated)}
	if v.isOperator() {
		form.URL, form.HiddenURL = "", hostOf(e.URL)
	}
	if err := form.choose(v.ctx(), v.view, e.Events); err != nil {
		return err
	}
	return v.show("endpoint_form", form)
}

// stamp returns when an endpoint was changed, for a form.
func stamp(at *time.Time) string {
	if at == nil {
		return ""
	}
	return at.UTC().Format(time.RFC3339Nano)
}

// ifUpdated returns the time of a stamp, nil where it is none.
func ifUpdated(text string) *time.Time {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return nil
	}
	return &at
}

func (h *Handler) changeEndpoint(v *visit) error {
	id, events, description := v.r.PathValue("endpoint"), chosenEvents(v.form), strings.TrimSpace(v.form.Get("description"))
	change := outbox.EndpointPatch{Events: &events, Description: &description, IfUpdated: ifUpdated(v.form.Get("updated"))}
	if url := strings.TrimSpace(v.form.Get("url")); url != "" || !v.isOperator() {
		text := secret.New(url)
		change.URL = &text
	}
	_, err := v.desk().Change(v.ctx(), id, change)
	if err == nil {
		return v.goTo("changed", "endpoints", id)
	}
	form := endpointForm{ID: id, URL: v.form.Get("url"), Description: description, Updated: v.form.Get("updated"), Errors: fieldErrors(err)}
	changed := errors.Is(err, outbox.ErrChanged)
	if len(form.Errors) == 0 && !changed {
		return err
	}
	e, err := v.view.Endpoint(v.ctx(), id)
	if err != nil {
		return err
	}
	if v.isOperator() {
		form.HiddenURL = hostOf(e.URL)
	}
	if err := form.choose(v.ctx(), v.view, events); err != nil {
		return err
	}
	if !changed {
		return v.showForm("endpoint_form", form)
	}
	now := v.row(e)
	form.Now, form.Updated = &now, stamp(e.Updated) // who sends it again has seen what it replaces
	h.renderFor(v.w, v.r, v, http.StatusPreconditionFailed, "endpoint_form", form)
	return nil
}

// windows are the times that the plots of an endpoint may cover.
var windows = []struct {
	Name string
	Of   time.Duration
}{{"1h", time.Hour}, {"24h", 24 * time.Hour}, {"7d", 7 * config.Day}, {"30d", 30 * config.Day}}

// recentShown is how many deliveries an endpoint's page shows.
const recentShown = 10

// endpointPage is the page of one endpoint.
type endpointPage struct {
	Endpoint   endpointRow
	Window     string
	Windows    []string
	Stats      outbox.EndpointStats
	Totals     outbox.StatsBucket
	Deliveries []outbox.DeliveryInfo
	// Missed is what enabling could send as well, and MissedCapped that there is more.
	Missed       int64
	MissedCapped bool
	Types        []string
	Sample       *manage.Sample // the result of a sample that was just sent
}

// Measured reports whether there was an attempt in the time of the plots.
func (p endpointPage) Measured() bool {
	return slices.ContainsFunc(p.Stats.Buckets, func(b outbox.StatsBucket) bool { return b.P50MS != nil })
}

func (h *Handler) endpoint(v *visit) error { return h.showEndpoint(v, nil) }

func (h *Handler) showEndpoint(v *visit, sample *manage.Sample) error {
	id := v.r.PathValue("endpoint")
	e, err := v.view.Endpoint(v.ctx(), id)
	if err != nil {
		return err
	}
	page := endpointPage{Endpoint: v.row(e), Window: "24h", Sample: sample}
	window := 24 * time.Hour
	for _, w := range windows {
		page.Windows = append(page.Windows, w.Name)
		if v.r.URL.Query().Get("window") == w.Name {
			page.Window, window = w.Name, w.Of
		}
	}
	if page.Stats, err = v.view.EndpointStats(v.ctx(), id, window); err != nil {
		return err
	}
	for _, b := range page.Stats.Buckets {
		page.Totals.Succeeded += b.Succeeded
		page.Totals.Failed += b.Failed
		page.Totals.Missed += b.Missed
		page.Totals.Pending += b.Pending
	}
	recent, err := v.view.Deliveries(v.ctx(), outbox.DeliveryFilter{EndpointID: id, Limit: recentShown})
	if err != nil {
		return err
	}
	page.Deliveries = recent.Deliveries
	if e.State == outbox.StateDisabled {
		if page.Missed, err = v.view.CountMissed(v.ctx(), id); err != nil {
			return err
		}
		page.MissedCapped = page.Missed >= outbox.MaxReplayCount
	}
	types, err := v.view.EventTypes(v.ctx())
	if err != nil {
		return err
	}
	patterns, err := outbox.ParsePatterns(e.Events)
	for _, t := range types {
		if err == nil && patterns.Match(t.Name) {
			page.Types = append(page.Types, t.Name)
		}
	}
	return v.show("endpoint", page)
}

// enableEndpoint enables an endpoint, and sends what it missed if the form asks for that. What cannot
// be sent is refused before anything is changed.
func (h *Handler) enableEndpoint(v *visit) error {
	id := v.r.PathValue("endpoint")
	var missed *outbox.ReplayRequest
	if v.form.Get("replay") != "" {
		missed = &outbox.ReplayRequest{Statuses: []outbox.Status{outbox.Missed}}
	}
	started, changed, err := v.desk().Enable(v.ctx(), id, missed)
	switch {
	case changed && err != nil:
		h.cfg.Log.Error("the console has enabled an endpoint, but cannot start the replay of what it missed", "endpoint", sink.Printable(id), "error", err)
		return v.goTo(unsent, "endpoints", id)
	case errors.Is(err, outbox.ErrRefused):
		return &outbox.Problem{Thing: "endpoint", Reason: "nothing was changed, since the agent cannot send to this endpoint", Remedy: "change its URL first, or enable it alone", Err: outbox.ErrRefused}
	case err != nil:
		return err
	case len(started) == 0: // nothing was asked for, or missed
		return v.goTo("enabled", "endpoints", id)
	}
	return v.goTo("enabled-replay", "replays", started[0].ID)
}

// askPage is a page that asks before something is done to an endpoint.
type askPage struct{ Endpoint endpointRow }

// ask shows the page that asks before something is done to an endpoint.
func (v *visit) ask(page string) error {
	e, err := v.view.Endpoint(v.ctx(), v.r.PathValue("endpoint"))
	if err != nil {
		return err
	}
	return v.show(page, askPage{Endpoint: v.row(e)})
}

func (h *Handler) askDisable(v *visit) error { return v.ask("ask_disable") }

func (h *Handler) disableEndpoint(v *visit) error {
	id := v.r.PathValue("endpoint")
	if _, err := v.view.DisableEndpoint(v.ctx(), id); err != nil {
		return err
	}
	return v.goTo("disabled", "endpoints", id)
}

func (h *Handler) askRotate(v *visit) error { return v.ask("ask_rotate") }

func (h *Handler) rotateSecret(v *visit) error {
	id := v.r.PathValue("endpoint")
	overlap, err := config.ParseDuration(v.form.Get("overlap"))
	if err != nil {
		return &manage.FieldError{Field: "overlap", Err: errors.New("is no duration; write 24h, 7d or 0s")}
	}
	rotated, err := v.desk().Rotate(v.ctx(), id, manage.Rotation{Overlap: overlap})
	if err != nil {
		return err
	}
	e, err := v.view.Endpoint(v.ctx(), id)
	if err != nil {
		return err
	}
	return v.show("secret", secretPage{ID: id, Host: hostOf(e.URL), Secret: rotated.Secret, Rotated: true, Until: rotated.FormerUntil})
}

func (h *Handler) askRemove(v *visit) error { return v.ask("ask_remove") }

func (h *Handler) removeEndpoint(v *visit) error {
	if err := v.desk().Remove(v.ctx(), v.r.PathValue("endpoint"), nil); err != nil {
		return err
	}
	return v.goTo("removed", "endpoints")
}

func (h *Handler) testEndpoint(v *visit) error {
	id := v.r.PathValue("endpoint")
	if _, err := v.view.Endpoint(v.ctx(), id); err != nil { // one of another venue is not counted
		return err
	}
	wait := h.cfg.Limits.Sample(v.caller.Name(), id)
	if wait > 0 { // some seconds at most, after a test event that was just sent
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-v.ctx().Done():
			return v.ctx().Err()
		}
		wait = h.cfg.Limits.Sample(v.caller.Name(), id)
	}
	if wait > 0 {
		v.tooMany(wait)
		return nil
	}
	sample, err := v.desk().Send(v.ctx(), id, v.form.Get("type"))
	if err != nil {
		return err
	}
	return h.showEndpoint(v, &sample)
}

// find leads to what has an id: an endpoint, a replay, or else an event.
func (h *Handler) find(v *visit) error {
	id := strings.TrimSpace(v.r.URL.Query().Get("id"))
	if id == "" {
		return v.goTo("", "deliveries")
	}
	if _, err := v.view.Endpoint(v.ctx(), id); err == nil {
		return v.goTo("", "endpoints", id)
	} else if !errors.Is(err, outbox.ErrNotFound) {
		return err
	}
	if _, err := v.view.Replay(v.ctx(), id); err == nil {
		return v.goTo("", "replays", id)
	} else if !errors.Is(err, outbox.ErrNotFound) {
		return err
	}
	http.Redirect(v.w, v.r, v.path("events", id), http.StatusSeeOther)
	return nil
}
