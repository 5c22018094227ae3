package manage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
)

const (
	// maxDescription is the greatest length of an endpoint's description, in characters.
	maxDescription = 1000
	// LongestOverlap is the longest time that a former secret may sign beside a new one.
	LongestOverlap = 30 * 24 * time.Hour
)

// NewEndpoint is an endpoint to register.
type NewEndpoint struct {
	Venue       string // the view's where it is empty
	URL         secret.Text
	Events      []string
	Description string
	// Secret is made where it is zero.
	Secret secret.Text
	outbox.Idempotency
}

// Added is an endpoint that was registered.
type Added struct {
	outbox.EndpointInfo
	// Secret is that of a new endpoint, and "" where the same request had been made before.
	Secret   string
	Repeated bool
}

// Add registers an endpoint.
func (d *Desk) Add(ctx context.Context, n NewEndpoint) (Added, error) {
	s, _, err := secretOr(n.Secret)
	if err := errors.Join(d.checkURL(n.URL.Reveal()), checkEvents(n.Events), checkText("description", n.Description, maxDescription), err); err != nil {
		return Added{}, err
	}
	if n.Venue != "" {
		if err := fieldError("venue", outbox.CheckVenue(n.Venue)); err != nil {
			return Added{}, err
		}
	}
	e := outbox.Endpoint{Venue: n.Venue, URL: n.URL, Events: n.Events, Secret: s}
	id, repeated, err := d.View.AddEndpoint(ctx, e, n.Description, n.Idempotency)
	if err != nil {
		return Added{}, err
	}
	info, err := d.View.Endpoint(ctx, id)
	if err != nil {
		return Added{}, err
	}
	return Added{EndpointInfo: info, Secret: revealed(s, !repeated), Repeated: repeated}, nil
}

// Change changes the URL, the patterns or the description of an endpoint.
func (d *Desk) Change(ctx context.Context, id string, c outbox.EndpointPatch) (outbox.EndpointInfo, error) {
	var problems []error
	if c.URL != nil {
		problems = append(problems, d.checkURL(c.URL.Reveal()))
	}
	if c.Events != nil {
		problems = append(problems, checkEvents(*c.Events))
	}
	if c.Description != nil {
		problems = append(problems, checkText("description", *c.Description, maxDescription))
	}
	if err := errors.Join(problems...); err != nil {
		return outbox.EndpointInfo{}, err
	}
	if err := d.refuseManaged(ctx, id); err != nil {
		return outbox.EndpointInfo{}, err
	}
	return d.View.UpdateEndpoint(ctx, id, c)
}

// Enable enables an endpoint and so begins a new failure counter. With missed, which need not name
// the endpoint, it also starts a replay. What that cannot be planned for is refused before anything is
// changed; changed reports that the endpoint was disabled before, also beside an error.
func (d *Desk) Enable(ctx context.Context, id string, missed *outbox.ReplayRequest) (started []outbox.ReplayInfo, changed bool, err error) {
	var plans []outbox.ReplayPlan
	if missed != nil {
		r := *missed
		r.EndpointID, r.Enabling = id, true
		if plans, err = d.Plan(ctx, r); err != nil {
			return nil, false, err
		}
	}
	if changed, err = d.View.EnableEndpoint(ctx, id); err != nil {
		return nil, changed, err
	}
	started, _, err = d.Start(ctx, plans, outbox.ReplayOptions{})
	return started, changed, err
}

// Remove removes an endpoint. Its log stays.
func (d *Desk) Remove(ctx context.Context, id string, ifUpdated *time.Time) error {
	if err := d.refuseManaged(ctx, id); err != nil {
		return err
	}
	return d.View.RemoveEndpoint(ctx, id, ifUpdated)
}

// refuseManaged returns an error for an endpoint of the configuration file, and for one that the
// view does not have.
func (d *Desk) refuseManaged(ctx context.Context, id string) error {
	e, err := d.View.Endpoint(ctx, id)
	if err == nil && e.ManagedBy != "" {
		return managed(id)
	}
	return err
}

// Rotation is a new secret for an endpoint.
type Rotation struct {
	// Secret is made where it is zero.
	Secret secret.Text
	// Overlap is how long the former secret also signs.
	Overlap   time.Duration
	IfUpdated *time.Time
}

// Rotated says what came of a rotation.
type Rotated struct {
	// Changed reports that the endpoint has another secret now, Ended that it had this secret already
	// and its former ones sign no more. Where neither holds, nothing changed.
	Changed, Ended bool
	// Secret is the new secret where it was made, else "".
	Secret string
	// FormerUntil is when the former secret stops signing, nil when it has stopped.
	FormerUntil *time.Time
}

// Rotate gives an endpoint a new secret.
func (d *Desk) Rotate(ctx context.Context, id string, r Rotation) (Rotated, error) {
	s, made, err := secretOr(r.Secret)
	if err != nil {
		return Rotated{}, err
	}
	if r.Overlap < 0 || r.Overlap > LongestOverlap {
		return Rotated{}, &FieldError{Field: "overlap", Err: fmt.Errorf("must be between 0s and %.0f days", LongestOverlap.Hours()/24)}
	}
	if err := d.refuseManaged(ctx, id); err != nil {
		return Rotated{}, err
	}
	e, err := d.View.EndpointWithSecret(ctx, id)
	if err != nil {
		return Rotated{}, err
	}
	now, err := d.Config.Keyring().Open(e.ID, e.Secret)
	same := err == nil && now.Equal(s)
	until, err := d.View.RotateSecret(ctx, id, s, r.Overlap, r.IfUpdated)
	switch {
	case errors.Is(err, outbox.ErrSameSecret):
		return Rotated{}, nil
	case err != nil:
		return Rotated{}, err
	}
	return Rotated{Changed: !same, Ended: same, Secret: revealed(s, made), FormerUntil: until}, nil
}
