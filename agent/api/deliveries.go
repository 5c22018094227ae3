package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/feed"
	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
)

// DeliveryFilter is the input of the delivery log and of its stream.
type DeliveryFilter struct {
	EndpointID string          `query:"endpoint_id" maxLength:"200"`
	Venue      string          `query:"venue" maxLength:"200" doc:"Only of this venue (for the operator)"`
	EventID    string          `query:"event_id" maxLength:"200"`
	Status     []outbox.Status `query:"status" enum:"pending,succeeded,failed,missed" doc:"Several separated by commas"`
	Type       string          `query:"type" maxLength:"200" doc:"lead.created, or lead.* for all types of lead"`
}

// filter returns the filter, or what is wrong with it. The log and its stream take the same.
func (f DeliveryFilter) filter() (outbox.DeliveryFilter, error) {
	if f.Type != "" {
		if _, err := outbox.ParsePatterns([]string{f.Type}); err != nil {
			return outbox.DeliveryFilter{}, badParameter("type", "is no event type; use one such as lead.created, or lead.*")
		}
	}
	return outbox.DeliveryFilter{EndpointID: f.EndpointID, Venue: f.Venue, EventID: f.EventID, Statuses: f.Status, Type: f.Type}, nil
}

type listDeliveries struct {
	DeliveryFilter
	Since time.Time `query:"since" doc:"Only of events that were created from this time on"`
	Until time.Time `query:"until" doc:"Only of events that were created before this time"`
	Paging
}

// deliveryPage is a part of the delivery log.
type deliveryPage struct {
	Body struct {
		Data       []outbox.DeliveryInfo `json:"data"`
		Next       *string               `json:"next" nullable:"true" doc:"The cursor of the next page, null when there is none. A page may be empty and have one: then the search goes on there"`
		Complete   bool                  `json:"complete" doc:"Whether everything that can match was looked at"`
		SearchedTo *time.Time            `json:"searched_to" nullable:"true" doc:"How far back the search has come, where it is not complete"`
	}
}

type deliveryPath struct {
	EventID    string `path:"event_id" minLength:"1" maxLength:"200"`
	EndpointID string `path:"endpoint_id" minLength:"1" maxLength:"200"`
}

// Delivery is a delivery with its failed attempts and the request.
type Delivery struct {
	outbox.DeliveryDetail
	Request *manage.Request `json:"request,omitempty" doc:"The request as it is sent, but for its signatures; missing when the event is no longer in the outbox, or has more than 4 MiB"`
}

func (s *Handler) deliveryRoutes() {
	register(s, operation{
		id: "list-deliveries", method: http.MethodGet, path: "/deliveries", tag: tagDeliveries, summary: "List the delivery log, newest event first",
		description: "A search that no index answers looks at a bounded number of rows and says how far it came.",
		errors:      []int{http.StatusNotFound},
	}, func(ctx context.Context, in *listDeliveries) (*deliveryPage, error) {
		f, err := in.filter()
		if err != nil {
			return nil, err
		}
		f.Since, f.Until, f.Before, f.Limit = optionalTime(in.Since), optionalTime(in.Until), in.Cursor, in.Limit
		found, err := s.view(ctx).Deliveries(ctx, f)
		if err != nil {
			return nil, err
		}
		out := &deliveryPage{}
		out.Body.Data, out.Body.Next, out.Body.Complete, out.Body.SearchedTo = noNull(found.Deliveries), optional(found.Next), found.Complete(), found.SearchedTo
		return out, nil
	})
	register(s, operation{
		id: "show-delivery", method: http.MethodGet, path: "/deliveries/{event_id}/{endpoint_id}", tag: tagDeliveries,
		summary: "Show a delivery with its attempts and its request",
	}, func(ctx context.Context, in *deliveryPath) (*answer[Delivery], error) {
		detail, request, err := s.desk(ctx).Delivery(ctx, in.EventID, in.EndpointID)
		if err != nil {
			return nil, err
		}
		if request != nil && callOf(ctx).caller.Role() != access.RoleVenue {
			request.HideURL()
		}
		detail.FailedAttempts = noNull(detail.FailedAttempts)
		return &answer[Delivery]{Delivery{detail, request}}, nil
	})
	s.streamDeliveries()
}

func (s *Handler) streamDeliveries() {
	registerStream(s, operation{
		id: "stream-deliveries", method: http.MethodGet, path: "/deliveries/stream", tag: tagDeliveries, summary: "Follow the delivery log",
		description: "Events named delivery, each with a row of the log as it was just recorded; events named left_out with the number of rows that were too many. The stream ends with the token.",
		errors:      []int{http.StatusNotFound},
	}, func(ctx context.Context, in *DeliveryFilter, out *stream) error {
		f, err := in.filter()
		if err != nil {
			return err
		}
		if venue := callOf(ctx).caller.Venue(); venue != "" {
			if f.Venue != "" && f.Venue != venue {
				out.begin() // and nothing of another venue, ever
				return nil
			}
			f.Venue = venue
		}
		return s.tail(ctx, f, out)
	})
}

// tail sends what is recorded and fits the filter. While this agent does not lead it asks the
// database now and then.
func (s *Handler) tail(ctx context.Context, f outbox.DeliveryFilter, out *stream) error {
	sub, err := s.cfg.Feed.Subscribe(f)
	if err != nil {
		return err
	}
	defer sub.Close()
	f.Limit = tailRows
	found, err := s.view(ctx).Deliveries(ctx, f)
	if err != nil {
		return err
	}
	var news feed.News
	news.Of(found.Deliveries) // which the caller has seen before he follows
	out.begin()
	ticker := time.NewTicker(s.tailPoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case d := <-sub.Rows:
			err = out.send("delivery", d)
		case <-ticker.C:
			if n := sub.LeftOut(); n > 0 {
				err = out.send("left_out", leftOut{n})
			}
			if err == nil && !Leads(s.cfg.Terms()) {
				err = s.sendNew(ctx, f, &news, out)
			}
			if err == nil {
				err = out.live()
			}
		}
		if err != nil {
			return err
		}
	}
}

// sendNew reads the newest rows and sends those that are new, oldest first.
func (s *Handler) sendNew(ctx context.Context, f outbox.DeliveryFilter, news *feed.News, out *stream) error {
	found, err := s.view(ctx).Deliveries(ctx, f)
	if err != nil {
		return err
	}
	for _, d := range news.Of(found.Deliveries) {
		if err := out.send("delivery", d); err != nil {
			return err
		}
	}
	return nil
}

// leftOut is the data of an event of a stream.
type leftOut struct {
	Rows int64 `json:"rows"`
}

type eventPath struct {
	EventID string `path:"event_id" minLength:"1" maxLength:"200"`
}

// Event is an event of the outbox with its deliveries.
type Event struct {
	outbox.EventInfo
	Deliveries []outbox.DeliveryDetail `json:"deliveries"`
}

func (s *Handler) eventRoutes() {
	register(s, operation{
		id: "show-event", method: http.MethodGet, path: "/events/{event_id}", tag: tagEvents, summary: "Show an event of the outbox with its deliveries",
		description: "Several where an app's own table has an id more than once.",
	}, func(ctx context.Context, in *eventPath) (*page[Event], error) {
		events, err := s.view(ctx).Event(ctx, in.EventID)
		if err != nil {
			return nil, err
		}
		deliveries, err := s.view(ctx).EventDeliveries(ctx, in.EventID, "")
		if err != nil && !errors.Is(err, outbox.ErrNotFound) {
			return nil, err
		}
		out := make([]Event, len(events))
		for i, e := range events {
			out[i] = Event{e, []outbox.DeliveryDetail{}}
			for _, d := range deliveries {
				if d.Venue == e.Venue && d.Type == e.Type {
					d.FailedAttempts = noNull(d.FailedAttempts)
					out[i].Deliveries = append(out[i].Deliveries, d)
				}
			}
		}
		return pageOf(out, ""), nil
	})
	register(s, operation{
		id: "explain-event", method: http.MethodGet, path: "/events/{event_id}/explain", tag: tagEvents, heavy: true,
		summary:     "Say for each endpoint why the event was or was not sent to it",
		description: "It compares the event with the endpoints as they are now: what an endpoint was before is not kept.",
	}, func(ctx context.Context, in *eventPath) (*answer[outbox.EventExplanation], error) {
		e, err := s.view(ctx).ExplainEvent(ctx, in.EventID)
		e.Endpoints = noNull(e.Endpoints)
		return &answer[outbox.EventExplanation]{e}, err
	})
}
