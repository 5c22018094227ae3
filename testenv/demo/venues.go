package main

import (
	"crypto/rand"
	"encoding/base64"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/testenv"
)

// venue is a tenant of the app, with its endpoints.
type venue struct {
	id        string
	name      string
	endpoints []*endpoint
}

// endpoint is an endpoint of a venue: how it is registered, and how its server behaves.
type endpoint struct {
	path       string
	events     []string
	registered registration
	secret     string
	behavior   string // text for people
	answers    testenv.Answerer
}

// registration is the way in which an endpoint is registered.
type registration string

const (
	bySQL  registration = "SQL"
	byCLI  registration = "CLI"
	byTOML registration = "TOML"
)

const (
	// outage is how long one server answers 500, counted from its first request. It is shorter than
	// the wait before the first retry (5s), so every delivery arrives with its second attempt.
	outage = 4 * time.Second
	// slowness is how long another server takes to answer.
	slowness = 700 * time.Millisecond
)

// makeVenues returns the venues of the demo, with new secrets.
func makeVenues() []*venue {
	fine := testenv.Script(testenv.Answer{})
	return []*venue{
		{id: "venue_01JQ7M2Y5V8A3C6E9G1J4K7N0P", name: "Quinta das Amendoeiras", endpoints: []*endpoint{
			{path: "/amendoeiras/crm", events: []string{"*"}, registered: bySQL, secret: standardSecret(), behavior: "fine", answers: fine},
			{path: "/amendoeiras/invoices", events: []string{"payment.received"}, registered: bySQL, secret: plainSecret(), behavior: "fine", answers: fine},
		}},
		{id: "venue_01JQ7M4R9T2B5D8F0H3K6M9Q1S", name: "Solar de Vale Verde", endpoints: []*endpoint{
			{path: "/vale-verde", events: []string{"lead.*", "proposal.signed"}, registered: byCLI, secret: standardSecret(), behavior: "fine", answers: fine},
		}},
		{id: "venue_01JQ7M6Z3W5E8G1J4M7P0R2T9V", name: "Herdade do Sobreiral", endpoints: []*endpoint{
			{path: "/sobreiral", events: []string{"*"}, registered: byTOML, secret: plainSecret(), behavior: "slow",
				answers: testenv.Script(testenv.Answer{Delay: slowness})},
		}},
		{id: "venue_01JQ7M8C1X4G7K0N3Q6S9V2Y5A", name: "Palácio da Ribeira Velha", endpoints: []*endpoint{
			{path: "/ribeira-velha", events: []string{"*"}, registered: bySQL, secret: standardSecret(), behavior: "fails at first",
				answers: failsFor(outage)},
		}},
		{id: "venue_01JQ7MAT6Z9J2M5Q8T1W4Y7B0D", name: "Quinta do Mirante Novo"},
	}
}

// wants reports whether the endpoint subscribes to a type. It is written from the customers'
// documentation, independent of the agent.
func (e *endpoint) wants(eventType string) bool {
	return slices.ContainsFunc(e.events, func(pattern string) bool {
		group, wildcard := strings.CutSuffix(pattern, "*")
		return pattern == eventType || wildcard && strings.HasPrefix(eventType, group)
	})
}

// failsFor answers 500 for the time d, which begins with the first request.
func failsFor(d time.Duration) testenv.Answerer {
	var first sync.Once
	var recovery time.Time // written once, before anything reads it
	return func(received testenv.Received) testenv.Answer {
		first.Do(func() { recovery = received.At.Add(d) })
		if received.At.Before(recovery) {
			return testenv.Answer{Status: 500, Body: "out of order"}
		}
		return testenv.Answer{}
	}
}

// standardSecret returns a new secret in the form of Standard Webhooks.
func standardSecret() string {
	key := make([]byte, 24)
	_, _ = rand.Read(key) // never fails
	return "whsec_" + base64.StdEncoding.EncodeToString(key)
}

// plainSecret returns a new secret such as a customer might type.
func plainSecret() string { return rand.Text() }
