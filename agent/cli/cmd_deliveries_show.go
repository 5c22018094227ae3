package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// eventDeliveries is the answer of the command deliveries show.
type eventDeliveries struct {
	EventID    string           `json:"event_id"`
	Venue      string           `json:"venue"`
	Type       string           `json:"type"`
	Created    *time.Time       `json:"created"`
	Found      string           `json:"found"` // outbox, or log
	Read       bool             `json:"read"`  // by the agent, for sure
	Deliveries []shownDelivery  `json:"deliveries"`
	NotSent    []unsentEndpoint `json:"not_sent"`          // the venue's endpoints that have no delivery
	Truncated  bool             `json:"truncated"`         // the venue has more endpoints
	Payload    json.RawMessage  `json:"payload,omitempty"` // with --payload
}

// shownDelivery is a delivery with what else concerns it.
type shownDelivery struct {
	outbox.DeliveryDetail
	Host          string                 `json:"host"`
	Events        []string               `json:"events"` // that the endpoint asks for now
	Former        *outbox.FormerDelivery `json:"former"` // before its last replay
	LastSuccessAt *time.Time             `json:"endpoint_last_success_at"`
}

// unsentEndpoint is an endpoint of the event's venue that has no delivery of it.
type unsentEndpoint struct {
	EndpointID string   `json:"endpoint_id"`
	Host       string   `json:"host"`
	Events     []string `json:"events"`
	Verdict    string   `json:"verdict"`
	Text       string   `json:"text"`
}

func (a *app) deliveriesShowCommand() *cobra.Command {
	var payload bool
	cmd := &cobra.Command{
		Use:   "show EVENT_ID [ENDPOINT_ID]",
		Short: "Show where an event went, attempt by attempt, where it did not go and why, and what comes next",
		Long: `show prints each delivery of an event with its failed attempts, and each other endpoint of the venue with the reason why it got
nothing. So it also explains an event that nobody asked for, and one that the agent has not read yet. An endpoint is judged as it is
now. Any beginning of an id is enough as long as no other id begins so. The id may also be one of another system, in an outbox of
the app's own.`,
		Example: `  webhook-agent deliveries show evt_01K5M3
  webhook-agent deliveries show evt_01K5M3 --payload
  webhook-agent deliveries show evt_01K5M3 ep_01K5M2 --json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 2 {
				return usagef(cmd, "%s takes an event id and may take an endpoint id, got %d arguments", cmd.CommandPath(), len(args))
			}
			return nil
		},
		RunE: a.withDatabase(func(ctx context.Context, d *desk, args []string) error {
			ids, err := d.eventIDs(ctx, args[:1])
			if err != nil {
				return err
			}
			endpointID := ""
			if len(args) == 2 {
				if endpointID, err = d.loggedEndpointID(ctx, args[1]); err != nil {
					return err
				}
			}
			return d.showEvent(ctx, ids[0], endpointID, payload)
		}),
	}
	cmd.Flags().BoolVar(&payload, "payload", false, "also show the data of the event")
	return cmd
}

// showEvent prints what came of an event, at one endpoint or at all.
func (d *desk) showEvent(ctx context.Context, eventID, endpointID string, payload bool) error {
	event, err := d.explainEvent(ctx, eventID, endpointID)
	if err != nil {
		return err
	}
	if payload {
		if event.Payload, err = d.payload(ctx, event); err != nil {
			return err
		}
	}
	if d.out.asJSON {
		return d.out.json(event)
	}
	read := "yes"
	if !event.Read {
		leading, err := d.db.Leading(ctx)
		if err != nil {
			return err
		}
		read = notRead(leading)
	}
	printEventDeliveries(d, event, read, time.Now())
	return nil
}

// explainEvent reads what is known of an event.
func (d *desk) explainEvent(ctx context.Context, eventID, endpointID string) (event eventDeliveries, err error) {
	all := d.db.AllVenues()
	x, err := all.ExplainEvent(ctx, eventID)
	if err != nil {
		return event, err
	}
	event = eventDeliveries{x.EventID, x.Venue, x.Type, x.Created, x.Found, x.Read, []shownDelivery{}, []unsentEndpoint{}, x.Truncated, nil}
	details, err := all.EventDeliveries(ctx, eventID, endpointID)
	none := errors.Is(err, outbox.ErrNotFound)
	if err != nil && !none {
		return event, err
	}
	for _, v := range x.Endpoints {
		if !slices.Contains(deliveryStatuses, outbox.Status(v.Verdict)) && (endpointID == "" || v.EndpointID == endpointID) {
			event.NotSent = append(event.NotSent, unsentEndpoint{v.EndpointID, v.Host, emptyList(v.Patterns), v.Verdict, v.Text})
		}
	}
	if none && endpointID != "" && len(event.NotSent) == 0 {
		return event, err // which says that the endpoint is not concerned
	}
	event.Deliveries, err = d.shownDeliveries(ctx, eventID, details, x.Endpoints)
	if len(details) > 0 { // two events may have the same id
		event.Venue, event.Type, event.Created = details[0].Venue, details[0].Type, details[0].Created
	}
	return event, err
}

// shownDeliveries adds to deliveries what else concerns them.
func (d *desk) shownDeliveries(ctx context.Context, eventID string, details []outbox.DeliveryDetail, endpoints []outbox.EndpointVerdict) ([]shownDelivery, error) {
	all := d.db.AllVenues()
	former, err := all.FormerDeliveries(ctx, eventID)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(details))
	for i, detail := range details {
		ids[i] = detail.EndpointID
	}
	successes, err := all.LastSuccesses(ctx, ids)
	if err != nil && !errors.Is(err, outbox.ErrTooSlow) { // the rest of the answer is worth having
		return nil, err
	}
	shown := []shownDelivery{}
	for _, detail := range details {
		delivery := shownDelivery{DeliveryDetail: detail, Events: []string{}}
		if f, ok := former[detail.EndpointID]; ok {
			delivery.Former = &f
		}
		if at, ok := successes[detail.EndpointID]; ok {
			delivery.LastSuccessAt = &at
		}
		// The delivery itself may be the last, where an old event was replayed.
		if at := detail.Finished; detail.Status == outbox.Succeeded && at != nil && (delivery.LastSuccessAt == nil || at.After(*delivery.LastSuccessAt)) {
			delivery.LastSuccessAt = at
		}
		for _, v := range endpoints {
			if v.EndpointID == detail.EndpointID {
				delivery.Host, delivery.Events = v.Host, emptyList(v.Patterns)
			}
		}
		shown = append(shown, delivery)
	}
	return shown, nil
}

// payload returns the data of an event.
func (d *desk) payload(ctx context.Context, event eventDeliveries) (json.RawMessage, error) {
	thing := fmt.Sprintf("the data of event %q", event.EventID)
	found, err := d.db.AllVenues().Event(ctx, event.EventID)
	if errors.Is(err, outbox.ErrNotFound) {
		return nil, &outbox.Problem{Thing: thing, Reason: "its row is no longer in the outbox", Remedy: "leave --payload out", Err: err}
	}
	if err != nil {
		return nil, err
	}
	for _, e := range found {
		if e.Venue != event.Venue || e.Type != event.Type {
			continue
		}
		if e.DataBytes > outbox.MaxShownData {
			return nil, &outbox.Problem{Thing: thing, Reason: "it has " + formatBytes(e.DataBytes) + ", which is too much to be shown", Remedy: "read it from the outbox by SQL"}
		}
		return e.Data, nil
	}
	return nil, &outbox.Problem{Thing: thing, Reason: "the outbox has another event under this id now", Remedy: "leave --payload out"}
}

// notRead says how far the agent is where an event may not have been read yet.
func notRead(l outbox.Leading) string {
	switch {
	case l.Leader == nil || l.Slot == nil:
		return "not yet: no agent has run with this slot; webhook-agent run starts one"
	case !l.Leads():
		return "not yet: no agent is connected; webhook-agent run starts one"
	}
	return fmt.Sprintf("not known yet: %s has recorded all up to %s, which is %s behind the server; look again in a few minutes",
		l.Leader.Holder, l.Leader.LSN, formatBytes(l.Slot.LagBytes))
}

func printEventDeliveries(d *desk, event eventDeliveries, read string, now time.Time) {
	d.out.fields([]field{
		{"event", event.EventID},
		{"type", event.Type},
		{"venue", event.Venue},
		{"created", formatTime(event.Created, now)},
		{"read", read},
		{"payload", string(event.Payload)},
	})
	for _, delivery := range event.Deliveries {
		d.out.line("")
		printShownDelivery(d, delivery, now)
	}
	if len(event.NotSent) > 0 {
		d.out.line("")
		d.out.line("not sent to:")
	}
	for _, e := range event.NotSent {
		d.out.line("  %s (%s), which asks for %s: %s", e.EndpointID, e.Host, strings.Join(e.Events, ", "), e.Text)
	}
	switch {
	case event.Truncated:
		d.out.line("the venue has more endpoints: webhook-agent endpoints list --venue %s", event.Venue)
	case len(event.Deliveries) == 0 && len(event.NotSent) == 0:
		d.out.line("")
		d.out.line("the venue %s has no endpoint, so nothing was sent", event.Venue)
	}
}

// printShownDelivery prints one delivery. What servers answered is printed whole, since it is what
// a customer asks for.
func printShownDelivery(d *desk, delivery shownDelivery, now time.Time) {
	d.out.fields([]field{
		{"endpoint", strings.TrimSpace(delivery.EndpointID + " " + delivery.Host)},
		{"asks for", strings.Join(delivery.Events, ", ")},
		{"status", fmt.Sprintf("%s: %s", delivery.Status, deliveryReason(delivery, 1+len(d.cfg.Delivery.Retries), now))},
		{"finished", formatTime(delivery.Finished, now)},
		{"replay", delivery.ReplayID},
		{"before it", formerText(delivery.Former, now)},
		{"last success", formatTime(delivery.LastSuccessAt, now)},
	})
	if len(delivery.FailedAttempts) == 0 {
		return
	}
	d.out.line("failed attempts:")
	for _, attempt := range delivery.FailedAttempts {
		when := attempt.At.Local().Format("2006-01-02 15:04:05")
		if attempt.LatencyMS != nil {
			when += fmt.Sprintf(", %d ms", *attempt.LatencyMS)
		}
		d.out.wrapped(fmt.Sprintf("%3d. ", attempt.Attempt), attemptIndent, sink.Printable(when+": "+attempt.Error), false)
		if attempt.Response != "" {
			d.out.line("%*sit said: %s", attemptIndent, "", attempt.Response)
		}
	}
}

// attemptIndent is the width of the number of an attempt.
const attemptIndent = 5

// formerText describes what a delivery was before its last replay.
func formerText(f *outbox.FormerDelivery, now time.Time) string {
	if f == nil {
		return ""
	}
	text := fmt.Sprintf("%s, attempts: %d", f.Status, f.Attempts)
	if f.LastError != "" {
		text += ", " + f.LastError
	} else if f.LastCode != nil {
		text += fmt.Sprintf(", status %d", *f.LastCode)
	}
	if f.Finished != nil {
		text += ", finished " + formatTime(f.Finished, now)
	}
	return text
}

// deliveryReason explains the status of a delivery in one sentence. limit is the greatest number of
// attempts.
func deliveryReason(d shownDelivery, limit int, now time.Time) string {
	switch d.Status {
	case outbox.Pending:
		if d.Attempts == 0 {
			return "no attempt was recorded yet; the first is due " + formatAge(d.NextAttemptAt, now)
		}
		return fmt.Sprintf("%d of %d attempts failed; the next is due %s", d.Attempts, limit, formatAge(d.NextAttemptAt, now))
	case outbox.Succeeded:
		return fmt.Sprintf("status %s after %s ms, at attempt %d", numberText(d.LastCode), numberText(d.LastLatencyMS), d.Attempts)
	case outbox.Failed:
		switch {
		case d.hasBadID():
			return fmt.Sprintf("not sent: %s; %s", d.LastError, d.remedy())
		case d.Attempts < limit && d.LastClass == "" && d.LastError != "": // no attempt could be made
			return "not sent: " + d.LastError
		}
		return fmt.Sprintf("all %d attempts failed; %s", d.Attempts, d.remedy())
	default:
		return fmt.Sprintf("not sent: %s; %s", d.LastError, d.remedy())
	}
}

// hasBadID reports whether the id of the event cannot be sent in a header, or not signed.
func (d shownDelivery) hasBadID() bool {
	return d.LastClass == string(sink.ClassInvalidEventID) || strings.Contains(d.EventID, ".")
}

// removed reports whether the log is all that is left of the endpoint.
func (d shownDelivery) removed() bool { return d.Host == "" && len(d.Events) == 0 }

// remedy says how a delivery that failed or was missed can be sent, or why it cannot.
func (d shownDelivery) remedy() string {
	replay := "webhook-agent deliveries replay " + d.EventID + " sends it"
	switch {
	case d.hasBadID():
		return "it cannot be sent under this id; write the event anew, with an id of visible ASCII without dots"
	case d.removed():
		return "the endpoint is gone, so nothing can be sent to it; endpoints add registers another one, for events to come"
	case !d.InOutbox:
		return "it cannot be sent again, since its row is no longer in the outbox"
	case d.Status == outbox.Failed:
		return replay + " again"
	}
	return "once the endpoint is enabled and can be sent to, " + replay
}
