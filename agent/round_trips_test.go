package agent

import (
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// mostRoundTrips is the greatest number of answers of the database that an agent may wait for until
// it leads. With 300 ms for each, that is half a minute.
const mostRoundTrips = 100

// The test counts the answers that an agent waits for, one after the other, between its start and
// its term.
func TestCandidate_LeadsAfterAsManyRoundTripsWhateverTheNumberOfEndpoints(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	lead := func() int {
		p := testenv.StartProxy(t, env.Addr())
		cfg := agenttest.Config(env)
		cfg.Database.URL = secret.New(p.Via(env.LeastURL))
		a, _ := bareAgent(t, cfg)
		c, tailer := newCandidate(a, a.db.Slot(cfg.Outbox.Slot)), outbox.NewTailer(a.outboxConfig(), a.log)
		defer tailer.Close()
		if err := c.acquire(t.Context(), tailer); err != nil {
			t.Fatal(err)
		}
		life := newLifetime(t.Context(), time.Hour, a.caught)
		defer life.kill(nil)
		if _, _, err := c.takeOver(t.Context(), life, tailer); err != nil {
			t.Fatal(err)
		}
		return p.Turns()
	}
	first := lead() // which makes the slot
	none := lead()
	env.Exec(t, `insert into webhooks.endpoints (venue, url, events, secret)
		select 'venue_' || n % 50, 'https://example.com/' || n, '{*}', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw' from generate_series(1, 2000) n`)
	many := lead()
	if many != none {
		t.Errorf("an agent leads after %d round trips with 2000 endpoints and %d with none", many, none)
	}
	t.Logf("the first agent leads after %d round trips, the next one after %d", first, none)
	if first > mostRoundTrips || none > mostRoundTrips {
		t.Errorf("an agent leads after %d round trips, the first one after %d, want no more than %d", none, first, mostRoundTrips)
	}
}
