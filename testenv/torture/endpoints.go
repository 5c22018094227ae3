package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/jackc/pgx/v5"
)

// mix says how many endpoints of each behavior there are.
var mix = []struct {
	behavior behavior
	n        int
}{{healthy, 30}, {slow, 5}, {flaky, 5}, {resetting, 5}, {dead, 3}, {hung, 2}}

const (
	venueCount = 10
	// silentVenue has no endpoint, so its events go nowhere.
	silentVenue = "venue_silent"
)

// subscriptions are the events that the endpoints want. Endpoints get them in turn.
var subscriptions = [][]string{
	{"*"}, {"lead.*", "payment.received"}, {"proposal.*"}, {"lead.created", "lead.stage_changed", "message.received"},
	{"lead", "invoice.*"}, {"*"}, {"lead.*", "lead.created"},
}

// makeEndpoints makes the endpoints, spread over the venues, and the list of all venues. customers
// is the address of the receivers. nowhere is the address of a port where nothing listens.
func makeEndpoints(seed uint64, customers, nowhere string) (endpoints []*endpointInfo, venues []string) {
	random := rand.New(rand.NewPCG(seed, 3))
	for i := range venueCount {
		venues = append(venues, fmt.Sprintf("venue_%02d", i+1))
	}
	for _, m := range mix {
		for i := range m.n {
			e := &endpointInfo{ID: fmt.Sprintf("ep_%s_%02d", m.behavior, i+1), Behavior: m.behavior}
			e.secret = newSecret(random)
			e.url = "http://" + customers + "/" + e.ID
			if m.behavior == dead {
				e.url = "http://" + nowhere + "/" + e.ID
			}
			endpoints = append(endpoints, e)
		}
	}
	for i, at := range random.Perm(len(endpoints)) {
		endpoints[at].Venue = venues[i%venueCount]
		endpoints[at].Events = subscriptions[random.IntN(len(subscriptions))]
	}
	return endpoints, append(venues, silentVenue)
}

// newSecret returns a secret in the form of Standard Webhooks, or one such as a customer might
// type.
func newSecret(random *rand.Rand) string {
	key := make([]byte, 24)
	for i := range key {
		key[i] = byte(random.Uint32())
	}
	encoded := base64.StdEncoding.EncodeToString(key)
	if random.IntN(2) == 0 {
		return "whsec_" + encoded
	}
	return encoded[:20]
}

const insertEndpoint = `insert into webhooks.endpoints (id, venue, url, events, secret) values ($1, $2, $3, $4, $5)`

// register registers the endpoints by SQL.
func register(ctx context.Context, url string, endpoints []*endpointInfo) (err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("register endpoints: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	for _, e := range endpoints {
		if _, err := conn.Exec(ctx, insertEndpoint, e.ID, e.Venue, e.url, e.Events, e.secret); err != nil {
			return fmt.Errorf("register endpoint %s: %w", e.ID, err)
		}
	}
	return nil
}
