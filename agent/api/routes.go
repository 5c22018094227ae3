package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

// routes adds all operations.
func (s *Handler) routes() {
	s.callerRoutes()
	s.endpointRoutes()
	s.deliveryRoutes()
	s.eventRoutes()
	s.replayRoutes()
	s.operatorRoutes()
}

// Names of the parts of the API, in its document.
const (
	tagCaller     = "caller"
	tagEndpoints  = "endpoints"
	tagDeliveries = "deliveries"
	tagEvents     = "events"
	tagReplays    = "replays"
	tagOperator   = "operator"
)

// page is a part of a list.
type page[T any] struct {
	Body struct {
		Data []T     `json:"data"`
		Next *string `json:"next" doc:"The cursor of the next page, null when this is the last" nullable:"true"`
	}
}

// pageOf returns a page with the cursor of the next one, "" for none.
func pageOf[T any](rows []T, next string) *page[T] {
	p := &page[T]{}
	p.Body.Data = noNull(rows)
	p.Body.Next = optional(next)
	return p
}

// noNull returns a list that JSON shows as [] when it is empty.
func noNull[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// optional returns nil for "".
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// optionalTime returns nil for the zero time.
func optionalTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Paging is the input of every list.
type Paging struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"At most this many rows"`
	Cursor string `query:"cursor" maxLength:"2000" doc:"The field next of the page before"`
}

// answer is the output of an operation without headers of its own.
type answer[T any] struct{ Body T }

// Caller is who asks.
type Caller struct {
	Role    string     `json:"role" enum:"operator,venue"`
	Venue   *string    `json:"venue" nullable:"true" doc:"The venue that the token is for, null for the operator"`
	Scope   string     `json:"scope" enum:"read,manage"`
	Subject string     `json:"subject" doc:"The claim sub of the token"`
	Expires *time.Time `json:"expires" nullable:"true" doc:"When the token ends, null for the operator's"`
}

// EventType is a type of the catalogue.
type EventType struct {
	Name        string          `json:"name" example:"lead.created"`
	Description string          `json:"description"`
	Example     json.RawMessage `json:"example" doc:"The data of an event of this type"`
}

func (s *Handler) callerRoutes() {
	register(s, operation{
		id: "whoami", method: http.MethodGet, path: "/whoami", tag: tagCaller, summary: "Show whose token this is",
	}, func(ctx context.Context, _ *struct{}) (*answer[Caller], error) {
		p := callOf(ctx).caller
		return &answer[Caller]{Caller{string(p.Role()), optional(p.Venue()), string(p.Scope()), p.Subject(), optionalTime(p.Expires())}}, nil
	})
	register(s, operation{
		id: "list-event-types", method: http.MethodGet, path: "/event-types", tag: tagCaller, summary: "List the types of the catalogue",
		description: "The types that the app has described in webhooks.event_types. An endpoint may ask for others as well.",
	}, func(ctx context.Context, _ *struct{}) (*page[EventType], error) {
		types, err := s.view(ctx).EventTypes(ctx)
		if err != nil {
			return nil, err
		}
		list := make([]EventType, len(types))
		for i, t := range types {
			list[i] = EventType(t)
		}
		return pageOf(list, ""), nil
	})
}

// TermInfo is what this agent does with a replication slot.
type TermInfo struct {
	Slot    string `json:"slot" example:"webhooks_agent"`
	State   string `json:"state" enum:"leading,standby,waiting" doc:"leading: it delivers; standby: another agent does; waiting: nothing is delivered by this agent, as problem says"`
	Detail  string `json:"detail" doc:"The same for people"`
	Problem string `json:"problem" doc:"Why nothing is delivered, empty when something is"`
}

// Leads reports whether an agent with these terms records what is delivered.
func Leads(terms []TermInfo) bool {
	return slices.ContainsFunc(terms, func(t TermInfo) bool { return t.State == "leading" })
}

func (s *Handler) operatorRoutes() {
	register(s, operation{
		id: "show-overview", method: http.MethodGet, path: "/overview", tag: tagOperator, need: needOperator, summary: "Show where the agent stands",
		description: "The leader, the replication slot, what is pending, and the endpoints that nothing is sent to.",
	}, func(ctx context.Context, _ *struct{}) (*answer[outbox.Overview], error) {
		o, err := s.cfg.DB.Overview(ctx)
		if err != nil {
			return nil, err
		}
		if err := s.view(ctx).FindLastSuccesses(ctx, o.NotSending); err != nil {
			return nil, err
		}
		o.NotSending = noNull(hideURLs(o.NotSending))
		return &answer[outbox.Overview]{o}, nil
	})
	register(s, operation{
		id: "list-terms", method: http.MethodGet, path: "/terms", tag: tagOperator, need: needOperator, summary: "Show what the asked agent does with each slot",
	}, func(context.Context, *struct{}) (*page[TermInfo], error) { return pageOf(s.cfg.Terms(), ""), nil })
}
