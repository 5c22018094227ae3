package manage

import (
	"context"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// Request is a request to a customer's server, but for its time and its signatures.
type Request struct {
	Method string `json:"method"`
	// URL is that of the endpoint now, "" when the endpoint is gone.
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
}

// HideURL keeps only the scheme and the host of the URL.
func (r *Request) HideURL() { r.URL = sink.RedactURL(r.URL) }

// Delivery returns a delivery with its failed attempts, and its request. The request is nil when the
// event is no longer in the outbox, or too large to be shown.
func (d *Desk) Delivery(ctx context.Context, eventID, endpointID string) (outbox.DeliveryDetail, *Request, error) {
	found, err := d.View.EventDeliveries(ctx, eventID, endpointID)
	if err != nil {
		return outbox.DeliveryDetail{}, nil, err
	}
	detail := found[0]
	if !detail.InOutbox {
		return detail, nil, nil
	}
	events, err := d.View.Event(ctx, eventID)
	if err != nil {
		return detail, nil, err
	}
	for _, e := range events {
		if e.Venue != detail.Venue || e.Type != detail.Type || e.Created == nil || e.DataBytes > outbox.MaxShownData {
			continue
		}
		request := d.request(outbox.Event{ID: e.ID, Type: e.Type, Venue: e.Venue, Data: e.Data, Created: *e.Created})
		if endpoint, err := d.View.Endpoint(ctx, endpointID); err == nil {
			request.URL = endpoint.URL
		}
		return detail, request, nil
	}
	return detail, nil, nil
}

// request returns the request of an event: its bytes depend on nothing but the event's row.
func (d *Desk) request(e outbox.Event) *Request {
	return &Request{
		Method:  "POST",
		Headers: map[string]string{"Content-Type": "application/json", "User-Agent": d.Webhook.UserAgent(), sink.HeaderID: e.ID},
		Body:    string(e.Envelope()),
	}
}
