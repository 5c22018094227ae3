package console

import (
	"errors"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
)

const (
	// deliveriesPerPage is how many deliveries the log shows at a time.
	deliveriesPerPage = 50
	// maxOffered is how many endpoints a form offers by name.
	maxOffered = 100
)

// statuses are those of a delivery, in the order of the form.
var statuses = []outbox.Status{outbox.Succeeded, outbox.Pending, outbox.Failed, outbox.Missed}

// deliveriesPage is the delivery log.
type deliveriesPage struct {
	Rows     []deliveryRow
	Filter   logFilter
	Statuses []outbox.Status
	Filtered bool
	Next     string // the query of the next page, or ""
	Later    bool   // it is not the first page
	First    string // the query of the first page
	// SearchedTo is how far back the search has come, nil where it looked at everything it had to.
	SearchedTo *time.Time
	// Endpoints are those that the form offers. It is empty where there are too many, and for operators.
	Endpoints []offeredEndpoint
	Types     []outbox.EventTypeInfo
	// Replay is the query of a replay of all that the filter lets through, "" where a replay cannot have
	// such a filter.
	Replay string
	// Live is the query of the live log, "" where the page is not its beginning.
	Live string
}

// deliveryRow is a delivery in a list.
type deliveryRow struct {
	outbox.DeliveryInfo
	Host string
}

// logFilter is what the form of the log says.
type logFilter struct {
	Status                       []string
	Type, Endpoint, Event, Venue string
	Since, Until                 string // as the form has them, in UTC
	Problem                      string // what is wrong with it
}

// replay returns the query of a replay of all that the filter lets through, but for what is pending.
// A replay is of one endpoint, and of all types. Without a status it is "": the form of a replay would
// leave out what has succeeded, which the log shows.
func (f logFilter) replay() string {
	if f.Endpoint == "" || f.Type != "" || f.Event != "" {
		return ""
	}
	q := url.Values{"endpoint": {f.Endpoint}}
	for name, value := range map[string]string{"since": f.Since, "until": f.Until} {
		if value != "" {
			q.Set(name, value)
		}
	}
	for _, status := range f.Status {
		if status != string(outbox.Pending) {
			q.Add("status", status)
		}
	}
	if len(q["status"]) == 0 {
		return ""
	}
	return q.Encode()
}

// Has reports whether a status is chosen.
func (f logFilter) Has(status outbox.Status) bool { return slices.Contains(f.Status, string(status)) }

// readFilter reads the form of the log from the query.
func (v *visit) readFilter() (f logFilter, of outbox.DeliveryFilter) {
	q := v.r.URL.Query()
	text := func(name string) string { return strings.TrimSpace(q.Get(name)) }
	f = logFilter{Type: text("type"), Endpoint: text("endpoint"), Event: text("event"), Since: text("since"), Until: text("until")}
	if v.venue == "" {
		f.Venue = text("venue")
	}
	for _, status := range statuses {
		if slices.Contains(q["status"], string(status)) {
			f.Status = append(f.Status, string(status))
			of.Statuses = append(of.Statuses, status)
		}
	}
	for _, status := range q["status"] {
		if status != "" && !slices.Contains(statuses, outbox.Status(status)) {
			f.Problem = "this is no status; choose one of the form"
		}
	}
	if len(of.Statuses) == len(statuses) {
		of.Statuses = nil
	}
	of.Type, of.EndpointID, of.EventID, of.Venue = f.Type, f.Endpoint, f.Event, f.Venue
	if f.Type != "" {
		if _, err := outbox.ParsePatterns([]string{f.Type}); err != nil {
			f.Problem, of.Type = "this is no event type; use one such as lead.created or lead.*", ""
		}
	}
	var ok bool
	if of.Since, ok = readTime(f.Since); !ok {
		f.Problem = "this is no time; write it like 2026-11-29T14:30"
	}
	if of.Until, ok = readTime(f.Until); !ok {
		f.Problem = "this is no time; write it like 2026-11-29T14:30"
	}
	f.Since, f.Until = formTime(of.Since), formTime(of.Until)
	return f, of
}

// readTime reads a time of UTC as a browser's form writes it, or as a day.
func readTime(text string) (*time.Time, bool) {
	if text == "" {
		return nil, true
	}
	for _, form := range []string{"2006-01-02T15:04", "2006-01-02T15:04:05", time.RFC3339, "2006-01-02"} {
		if at, err := time.Parse(form, text); err == nil {
			return &at, true
		}
	}
	return nil, false
}

// formTime writes a time as a field of a form takes it. A browser drops any other form, and complains
// about it.
func formTime(at *time.Time) string {
	if at == nil {
		return ""
	}
	if at.Second() == 0 {
		return at.UTC().Format("2006-01-02T15:04")
	}
	return at.UTC().Format("2006-01-02T15:04:05")
}

func (h *Handler) deliveries(v *visit) error {
	f, of := v.readFilter()
	page := deliveriesPage{Filter: f, Statuses: statuses, Filtered: v.isFiltered()}
	if f.Problem != "" { // without what is wrong the filter would let everything through
		if err := page.offer(v); err != nil {
			return err
		}
		return v.showForm("deliveries", page)
	}
	q := v.r.URL.Query()
	of.Before, of.Limit = q.Get("before"), deliveriesPerPage
	page.Later, page.First = of.Before != "", withoutQuery(q, "before")
	found, err := v.view.Deliveries(v.ctx(), of)
	if err != nil {
		return err
	}
	if found.Next != "" {
		page.Next = withQuery(q, "before", found.Next)
	}
	page.SearchedTo = found.SearchedTo
	if page.Rows, err = v.deliveryRows(found.Deliveries); err != nil {
		return err
	}
	page.Replay = f.replay()
	if err := page.offer(v); err != nil {
		return err
	}
	if !page.Later && of.Since == nil && of.Until == nil {
		page.Live = withQuery(q, "position", "-1")
	}
	return v.show("deliveries", page)
}

// offer reads what the form has to choose from.
func (p *deliveriesPage) offer(v *visit) (err error) {
	if p.Types, err = v.view.EventTypes(v.ctx()); err != nil || v.venue == "" {
		return err
	}
	if p.Endpoints, _, err = v.offered(); err != nil || p.Filter.Endpoint == "" {
		return err
	}
	if !slices.ContainsFunc(p.Endpoints, func(e offeredEndpoint) bool { return e.ID == p.Filter.Endpoint }) {
		p.Endpoints = nil // it was removed, and has rows in the log
	}
	return nil
}

// offeredEndpoint is an endpoint that a form offers by a name.
type offeredEndpoint struct{ ID, Name string }

// offered returns the endpoints that a form offers, each by a name of its own. There are none where
// they are too many for a list.
func (v *visit) offered() (list []offeredEndpoint, tooMany bool, err error) {
	found, err := v.view.Endpoints(v.ctx(), outbox.EndpointFilter{Limit: maxOffered + 1})
	if err != nil || len(found) > maxOffered {
		return nil, len(found) > maxOffered, err
	}
	named := map[string]int{}
	for _, e := range found {
		name := clean(hostOf(e.URL))
		if e.Description != "" {
			name += " · " + clean(e.Description)
		}
		named[name]++
		list = append(list, offeredEndpoint{e.ID, name})
	}
	for i, e := range list {
		if named[e.Name] > 1 {
			list[i].Name += " · " + cut(e.ID)
		}
	}
	return list, false, nil
}

// isFiltered reports whether the log is narrowed.
func (v *visit) isFiltered() bool {
	q := v.r.URL.Query()
	return slices.ContainsFunc([]string{"status", "type", "endpoint", "event", "venue", "since", "until"}, func(name string) bool { return q.Get(name) != "" })
}

// deliveryRows adds the hosts of the endpoints to deliveries.
func (v *visit) deliveryRows(list []outbox.DeliveryInfo) ([]deliveryRow, error) {
	hosts, err := v.view.Hosts(v.ctx(), endpointIDs(list))
	if err != nil {
		return nil, err
	}
	rows := make([]deliveryRow, len(list))
	for i, d := range list {
		rows[i] = deliveryRow{d, hosts[d.EndpointID]}
	}
	return rows, nil
}

// endpointIDs returns the endpoints of deliveries.
func endpointIDs(list []outbox.DeliveryInfo) []string {
	ids := make([]string, len(list))
	for i, d := range list {
		ids[i] = d.EndpointID
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// liveRow is a delivery in the live log.
type liveRow struct {
	Event    string `json:"event"`
	Endpoint string `json:"endpoint"`
	ID       string `json:"endpoint_id"`
	Venue    string `json:"venue"`
	Type     string `json:"type"`
	Status   string `json:"status"`
	Word     string `json:"word"` // the status in the visitor's language
	Result   string `json:"result"`
	Latency  string `json:"latency"`
	Attempts int    `json:"attempts"`
	Created  string `json:"created"`
	Path     string `json:"path"`
}

// livePage is what the script of the live log gets.
type livePage struct {
	Position int64     `json:"position"`
	LeftOut  int64     `json:"left_out"`
	Rows     []liveRow `json:"rows"` // oldest first
}

// deliveriesLive answers from memory: pages that are open ask for it every few seconds.
func (h *Handler) deliveriesLive(v *visit) error {
	f, of := v.readFilter()
	if f.Problem != "" {
		return &manage.FieldError{Field: "query", Err: errors.New(f.Problem)}
	}
	if v.venue != "" {
		of.Venue = v.venue
	}
	position, err := strconv.ParseInt(v.r.URL.Query().Get("position"), 10, 64)
	if err != nil {
		position = -1
	}
	if !h.leads() {
		if err := h.log.pass(v.ctx(), h.cfg.DB, h.cfg.Feed); err != nil {
			return err
		}
	}
	tail, err := h.cfg.Feed.Tail(of, position)
	if err != nil {
		return err
	}
	texts := h.pages.texts[languageOf(v.r)]
	page := livePage{Position: tail.Position, LeftOut: tail.LeftOut, Rows: []liveRow{}}
	for _, d := range tail.Rows {
		row := liveRow{Event: cut(d.EventID), Endpoint: cut(d.EndpointID), ID: d.EndpointID, Venue: cut(d.Venue), Type: clean(d.Type), Status: string(d.Status), Word: texts.word(string(d.Status)),
			Result: resultOf(texts, d), Latency: texts.milliseconds(d.LastLatencyMS), Attempts: d.Attempts, Path: v.path("deliveries", d.EventID, d.EndpointID)}
		if d.Created != nil {
			row.Created = d.Created.UTC().Format(time.RFC3339)
		}
		page.Rows = append(page.Rows, row)
	}
	return v.json(page)
}

// resultOf returns what the last attempt of a delivery has come to.
func resultOf(t *texts, d outbox.DeliveryInfo) string {
	switch {
	case d.LastCode != nil && *d.LastCode > 0:
		return strconv.Itoa(*d.LastCode)
	case d.LastClass != "":
		return t.word(d.LastClass)
	}
	return "–"
}

// withQuery returns a query with another value of one field.
func withQuery(q url.Values, name, value string) string {
	changed := maps.Clone(q)
	changed.Del("done")
	changed.Set(name, value)
	return changed.Encode()
}

// withoutQuery returns a query without a field.
func withoutQuery(q url.Values, name string) string {
	changed := maps.Clone(q)
	changed.Del("done")
	changed.Del(name)
	return changed.Encode()
}
