package cli

import (
	"context"

	"github.com/spf13/cobra"
)

// endpointID returns the id of the endpoint whose id begins with given.
func (d *desk) endpointID(ctx context.Context, given string) (string, error) {
	return d.db.AllVenues().EndpointID(ctx, given, false)
}

// loggedEndpointID is endpointID that also finds endpoints of which the log is all that is left. It
// returns "" where none is given.
func (d *desk) loggedEndpointID(ctx context.Context, given string) (string, error) {
	return d.db.AllVenues().EndpointID(ctx, given, true)
}

// eventID returns the id of the event whose id begins with given. It returns "" where none is
// given, without a look at the outbox, which the role may not be allowed to read.
func (d *desk) eventID(ctx context.Context, given string) (string, error) {
	if given == "" {
		return "", nil
	}
	return d.db.AllVenues().EventID(ctx, given)
}

// eventIDs returns the ids of the events whose ids begin with those given.
func (d *desk) eventIDs(ctx context.Context, given []string) (ids []string, err error) {
	for _, text := range given {
		id, err := d.eventID(ctx, text)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// withEndpoint is withDatabase for commands whose only argument is an endpoint.
func (a *app) withEndpoint(do func(ctx context.Context, d *desk, id string) error) func(*cobra.Command, []string) error {
	return a.withDatabase(func(ctx context.Context, d *desk, args []string) error {
		id, err := d.endpointID(ctx, args[0])
		if err != nil {
			return err
		}
		return do(ctx, d, id)
	})
}

// withReplay is withDatabase for commands whose only argument is a replay.
func (a *app) withReplay(do func(ctx context.Context, d *desk, id string) error) func(*cobra.Command, []string) error {
	return a.withDatabase(func(ctx context.Context, d *desk, args []string) error {
		id, err := d.db.AllVenues().ReplayID(ctx, args[0])
		if err != nil {
			return err
		}
		return do(ctx, d, id)
	})
}
