package main

import (
	"time"
)

// maxAhead is how far the time of a signature may be wrong. Customers' libraries have the same
// bound.
const maxAhead = 5 * time.Minute

// checkRequests judges each request by itself: whether it had to be sent to this endpoint, and
// whether it is as promised.
func (c *checker) checkRequests() {
	bodies := map[string]string{} // by event and hash
	for _, r := range c.h.Requests {
		if r.Body != "" {
			bodies[r.Event+r.Hash] = r.Body
		}
		endpoint, event := c.endpoints[r.Endpoint], c.events[r.Event]
		switch {
		case event == nil:
			c.v.phantoms++
			c.fail(rulePhantom, "request %d at %s to %s brought event %q, which nobody wrote",
				r.N, seconds(r.At), r.Endpoint, r.Event)
			continue
		case event.fate != committed:
			c.v.phantoms++
			c.fail(rulePhantom, "request %d at %s to %s brought event %s, whose transaction was rolled back",
				r.N, seconds(r.At), r.Endpoint, r.Event)
			continue
		case endpoint == nil:
			c.fail(ruleTenant, "request %d at %s brought event %s to %s", r.N, seconds(r.At), r.Event, r.Endpoint)
			continue
		case endpoint.Venue != event.Venue:
			c.fail(ruleTenant, "request %d at %s brought event %s of %s to %s of %s",
				r.N, seconds(r.At), r.Event, event.Venue, r.Endpoint, endpoint.Venue)
		case !endpoint.wants(event.Type):
			c.fail(ruleTenant, "request %d at %s brought event %s of type %s to %s, which wants %q",
				r.N, seconds(r.At), r.Event, event.Type, r.Endpoint, endpoint.Events)
		}
		if r.Hash != event.hash {
			c.fail(ruleBytes, "request %d at %s to %s: the body is %q, promised is %q",
				r.N, seconds(r.At), r.Endpoint, bodies[r.Event+r.Hash], envelope(event.writtenEvent))
		}
		c.checkSignatures(r)
	}
}

func (c *checker) checkSignatures(r request) {
	for _, wrong := range []string{r.Quintago, r.Standard} {
		if wrong != "" {
			c.fail(ruleSignature, "request %d at %s, event %s to %s: %s",
				r.N, seconds(r.At), r.Event, r.Endpoint, wrong)
		}
	}
	if r.Ahead.Abs() <= maxAhead {
		return
	}
	// An agent with a wrong clock cannot sign the right time. That is its fault only if the torture
	// has not moved the clock.
	for _, f := range c.faults {
		const held = 20 * time.Second // longer than a network fault holds a request back
		moved := f.Kind == clock && f.hit(r.Agent) && r.At >= f.Start && r.At <= f.End+held
		if moved && (r.Ahead-f.Shift).Abs() <= maxAhead {
			return
		}
	}
	c.fail(ruleSignature, "request %d at %s, event %s to %s by agent %s: the time of the signature is %s off",
		r.N, seconds(r.At), r.Event, r.Endpoint, r.Agent, r.Ahead)
}

// checkArrival judges whether everything that was committed has arrived, and whether the log has
// nothing else.
func (c *checker) checkArrival() {
	for key, p := range c.pairs {
		if !p.wanted {
			if p.row != nil {
				c.failUnwanted(key)
			}
			continue
		}
		endpoint := c.endpoints[key.endpoint]
		switch {
		case p.row == nil:
			c.v.lost++
			c.fail(ruleLost, "event %s to %s: it has no delivery, and %d requests arrived",
				key.event, key.endpoint, len(p.requests))
		case endpoint.Behavior != dead && endpoint.Behavior != hung && len(p.requests) == 0:
			c.v.lost++
			c.fail(ruleLost, "event %s to %s: it never arrived; the log says %s", key.event, key.endpoint, p.row.Status)
		case endpoint.Behavior.answers() && p.row.Status != "succeeded":
			c.v.lost++
			c.fail(ruleLost, "event %s to %s: in the end the log says %s after %d attempts",
				key.event, key.endpoint, p.row.Status, p.row.Attempts)
		}
	}
}

// failUnwanted reports a delivery that should not be in the log, and why.
func (c *checker) failUnwanted(key pairKey) {
	switch event := c.events[key.event]; {
	case event == nil || event.fate != committed:
		c.v.phantoms++
		c.fail(rulePhantom, "the log has a delivery of event %s to %s, whose transaction was not committed",
			key.event, key.endpoint)
	default:
		c.fail(ruleTenant, "the log has a delivery of event %s of %s to %s, which does not want it",
			key.event, event.Venue, key.endpoint)
	}
}
