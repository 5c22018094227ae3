package console

import (
	"errors"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/quintago/webhook-agent/agent/api"
	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
)

// replaysPerPage is how many replays the history shows at a time.
const replaysPerPage = 25

// replaysPage is the history of replays.
type replaysPage struct {
	Rows     []replayRow
	Endpoint string // only of this one
	Next     string // the query of the next page, or ""
	Later    bool
}

// replayRow is a replay in a list, or on its page.
type replayRow struct {
	outbox.ReplayInfo
	Host string
}

// Percent is how far the replay is, of what its plan counted.
func (r replayRow) Percent() int {
	of := r.Total
	if r.Expected != nil {
		of = max(of, *r.Expected)
	}
	if of == 0 {
		return 0
	}
	return int(min(100, 100*(r.Done+r.Unsent)/of))
}

// Of is how many deliveries the replay is about.
func (r replayRow) Of() int64 {
	if r.Expected != nil {
		return max(r.Total, *r.Expected)
	}
	return r.Total
}

func (v *visit) replayRows(list []outbox.ReplayInfo) ([]replayRow, error) {
	ids := make([]string, len(list))
	for i, r := range list {
		ids[i] = r.EndpointID
	}
	hosts, err := v.view.Hosts(v.ctx(), ids)
	if err != nil {
		return nil, err
	}
	rows := make([]replayRow, len(list))
	for i, r := range list {
		rows[i] = replayRow{r, hosts[r.EndpointID]}
	}
	return rows, nil
}

func (h *Handler) replays(v *visit) error {
	q := v.r.URL.Query()
	page := replaysPage{Endpoint: strings.TrimSpace(q.Get("endpoint")), Later: q.Get("before") != ""}
	list, next, err := v.view.ListReplays(v.ctx(), outbox.ReplayFilter{EndpointID: page.Endpoint, Before: q.Get("before"), Limit: replaysPerPage})
	if err != nil {
		return err
	}
	if next != "" {
		page.Next = withQuery(q, "before", next)
	}
	if page.Rows, err = v.replayRows(list); err != nil {
		return err
	}
	return v.show("replays", page)
}

// replayForm is the form of a new replay, with what it would do.
type replayForm struct {
	Endpoint     string
	Host         string
	Events       []string // these alone, "" for a time range
	Statuses     []replayStatus
	Since, Until string
	PerSecond    string
	Count        int64
	Capped       bool
	Refused      string
	Errors       map[string]string
	Repeated     string // names the form, so that it starts nothing twice
	Choices      []offeredEndpoint
	TooMany      bool // for choices
}

// replayStatus is a status in the form.
type replayStatus struct {
	Status outbox.Status
	Chosen bool
}

// readReplay reads the form of a replay, as a query or as a form that was sent.
func readReplay(q url.Values) (form replayForm, r outbox.ReplayRequest) {
	form = replayForm{Endpoint: strings.TrimSpace(q.Get("endpoint")), Since: q.Get("since"), Until: q.Get("until"), PerSecond: strings.TrimSpace(q.Get("per_second")), Errors: map[string]string{}}
	for _, id := range q["event"] {
		if id = strings.TrimSpace(id); id != "" && !slices.Contains(form.Events, id) {
			form.Events = append(form.Events, id)
		}
	}
	r = outbox.ReplayRequest{EndpointID: form.Endpoint, EventIDs: form.Events}
	var ok bool
	if r.Since, ok = readTime(form.Since); !ok {
		form.Errors["since"] = "this is no time; write it like 2026-11-29T14:30"
	}
	if r.Until, ok = readTime(form.Until); !ok {
		form.Errors["until"] = "this is no time; write it like 2026-11-29T14:30"
	}
	form.Since, form.Until = formTime(r.Since), formTime(r.Until)
	for _, status := range manage.ReplayStatuses {
		has := slices.Contains(q["status"], string(status))
		form.Statuses = append(form.Statuses, replayStatus{status, has})
		if has {
			r.Statuses = append(r.Statuses, status)
		}
	}
	if len(r.Statuses) == 0 {
		form.Errors["status"] = "choose at least one"
	}
	return form, r
}

// proposeStatuses returns the query of a link to the form with the statuses that the form proposes. The
// form itself, which may be sent as a query too, has a key: there, nothing ticked means nothing.
func proposeStatuses(q url.Values) url.Values {
	if q.Has("key") || q.Has("status") {
		return q
	}
	proposed := maps.Clone(q)
	proposed["status"] = []string{string(outbox.Missed), string(outbox.Failed)}
	if q.Has("event") {
		proposed.Add("status", string(outbox.Succeeded))
	}
	return proposed
}

// pace reads the pace of a form.
func (f *replayForm) pace() int {
	if f.PerSecond == "" {
		return 0
	}
	n, err := strconv.Atoi(f.PerSecond)
	if err != nil || outbox.CheckPace(n) != nil {
		f.Errors["per_second"] = "must be a whole number from 1 to 10000, or nothing"
	}
	return n
}

// plan counts what a replay would do.
func (v *visit) plan(form *replayForm, r outbox.ReplayRequest) error {
	if len(form.Errors) > 0 || form.Endpoint == "" && len(form.Events) == 0 {
		return nil
	}
	done, ok := v.h.cfg.Limits.Heavy(v.caller.Name())
	if !ok {
		return errBusyCounting
	}
	defer done()
	plans, err := v.desk().Plan(v.ctx(), r)
	if errors.Is(err, outbox.ErrRefused) {
		form.Refused = api.Explain(err).Reason
		return nil
	}
	if err != nil {
		return err
	}
	for _, plan := range plans {
		form.Capped = form.Capped || plan.Deliveries >= outbox.MaxReplayCount
		if plan.Refused != "" {
			form.Refused = "an endpoint of these events gets nothing, since it was removed, is disabled or cannot be sent to"
			continue
		}
		form.Count += plan.Deliveries
	}
	return nil
}

var errBusyCounting = &outbox.Problem{Thing: "replay", Reason: "another page counts at this moment", Remedy: "try again in a moment"}

func (h *Handler) newReplay(v *visit) error {
	form, r := readReplay(proposeStatuses(v.r.URL.Query()))
	form.Repeated = newKey()
	return v.showReplayForm(form, r)
}

// showReplayForm shows the form of a replay with the count of what it would send.
func (v *visit) showReplayForm(form replayForm, r outbox.ReplayRequest) error {
	if form.Endpoint == "" && len(form.Events) == 0 {
		var err error
		if form.Choices, form.TooMany, err = v.offered(); err != nil {
			return err
		}
		return v.show("replay_form", form)
	}
	if form.Endpoint != "" {
		hosts, err := v.view.Hosts(v.ctx(), []string{form.Endpoint})
		if err != nil {
			return err
		}
		form.Host = hosts[form.Endpoint]
	}
	if err := v.plan(&form, r); err != nil {
		if maps.Copy(form.Errors, fieldErrors(err)); len(form.Errors) == 0 {
			return err
		}
	}
	if len(form.Errors) > 0 {
		return v.showForm("replay_form", form)
	}
	return v.show("replay_form", form)
}

// counted is what the form's script learns of a replay.
type counted struct {
	Text   string            `json:"text"`
	Count  int64             `json:"count"`
	Errors map[string]string `json:"errors,omitempty"` // by the field
}

// countReplay counts for the form's script what a replay would send.
func (h *Handler) countReplay(v *visit) error {
	form, r := readReplay(v.r.URL.Query())
	if err := v.plan(&form, r); err != nil {
		return err
	}
	t := h.pages.texts[languageOf(v.r)]
	errs := map[string]string{}
	for field, text := range form.Errors {
		errs[field] = t.say(text)
	}
	return v.json(counted{countText(t, form), form.Count, errs})
}

// countText says how many deliveries a replay would send.
func countText(t *texts, form replayForm) string {
	if form.Capped {
		return t.say("%s deliveries or more", t.number(form.Count))
	}
	return t.count(form.Count, "1 delivery", "%s deliveries")
}

func (h *Handler) startReplay(v *visit) error {
	form, r := readReplay(v.form)
	form.Repeated = v.form.Get("key")
	perSecond := form.pace()
	if len(form.Errors) > 0 {
		return v.showReplayForm(form, r)
	}
	// A form that is sent twice finds nothing left to send, since its deliveries are on their way. It
	// leads to the replays of the first time.
	started, _, err := v.desk().Replay(v.ctx(), r, outbox.ReplayOptions{PerSecond: perSecond, Idempotency: once(v.form)})
	if err != nil && !errors.Is(err, outbox.ErrRefused) {
		if fields := fieldErrors(err); len(fields) > 0 {
			form.Errors = fields
			return v.showReplayForm(form, r)
		}
		return err
	}
	switch len(started) {
	case 0:
		return v.showReplayForm(form, r) // which says why there is nothing
	case 1:
		return v.goTo("replay-started", "replays", started[0].ID)
	}
	return v.goTo("replay-started", "replays")
}

func (h *Handler) replay(v *visit) error {
	r, err := v.view.Replay(v.ctx(), v.r.PathValue("replay"))
	if err != nil {
		return err
	}
	rows, err := v.replayRows([]outbox.ReplayInfo{r})
	if err != nil {
		return err
	}
	return v.show("replay", rows[0])
}

// replayProgress is what the script of a replay's page gets.
type replayProgress struct {
	State   string `json:"state"`
	Word    string `json:"word"`
	Done    string `json:"done"`
	Unsent  string `json:"unsent"`
	Of      string `json:"of"`
	Percent int    `json:"percent"`
	Ended   bool   `json:"ended"`
}

func (h *Handler) replayLive(v *visit) error {
	r, err := v.view.Replay(v.ctx(), v.r.PathValue("replay"))
	if err != nil {
		return err
	}
	row, t := replayRow{ReplayInfo: r}, h.pages.texts[languageOf(v.r)]
	return v.json(replayProgress{r.State, t.word(r.State), t.number(r.Done), t.number(r.Unsent), t.number(row.Of()), row.Percent(), r.Ended()})
}

// steerReplay pauses, resumes or cancels a replay, or changes its pace.
func (h *Handler) steerReplay(v *visit) error {
	id := v.r.PathValue("replay")
	var err error
	done := v.form.Get("do")
	switch done {
	case "pause":
		_, err = v.view.PauseReplay(v.ctx(), id)
	case "resume":
		_, err = v.view.ResumeReplay(v.ctx(), id)
	case "cancel":
		_, err = v.view.CancelReplay(v.ctx(), id)
	case "pace":
		n := 0
		if text := strings.TrimSpace(v.form.Get("per_second")); text != "" {
			if n, err = strconv.Atoi(text); err != nil || n == 0 {
				return &manage.FieldError{Field: "per_second", Err: errors.New("must be a whole number from 1 to 10000, or nothing")}
			}
		}
		_, err = v.view.SetReplayPace(v.ctx(), id, n)
	default:
		return &manage.FieldError{Field: "do", Err: errors.New("is not known")}
	}
	if err != nil {
		return err
	}
	return v.goTo("replay-"+done, "replays", id)
}
