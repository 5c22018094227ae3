package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	secrets "github.com/quintago/webhook-agent/secret"
)

// The scenario of this file is a crowd that asks the HTTP API for lists and counts while events are
// delivered.

const (
	// hammerers is how many clients ask, each for a venue of its own, and hammerPause how long one waits
	// between an answer and its next request, whatever the answer says.
	hammerers   = 50
	hammerPause = 10 * time.Millisecond
	// consoleKey signs the tokens of venues.
	consoleKey = "bench-0123456789abcdef0123456789abcdef"
)

// endPending leaves nothing of the log to be sent.
const endPending = `update webhooks.deliveries set status = 'failed', next_attempt_at = null, finished = now() where status = 'pending'`

// besideHammering measures an endpoint in turn with and without the crowd, over a large log.
func (b *bench) besideHammering(ctx context.Context) (err error) {
	d, err := b.newDatabase(ctx, agentOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.drop(ctx)) }()
	if err := d.skew(ctx); err != nil {
		return err
	}
	if _, err := d.conn.Exec(ctx, endPending); err != nil {
		return fmt.Errorf("end what is pending: %w", err)
	}
	if err := d.endpoint(ctx, "ep_sound", venue(0), b.customers.url(sound, 0)); err != nil {
		return err
	}
	l := b.full(1, 1)
	if err := d.warm(ctx, l); err != nil {
		return err
	}
	var rates, ratios []float64
	var answered, refused int64
	for range b.rounds {
		quiet, err := d.deliver(ctx, l)
		if err != nil {
			return err
		}
		crowd, err := d.hammer(ctx)
		if err != nil {
			return err
		}
		r, err := d.deliver(ctx, l)
		crowd.stop()
		if err != nil {
			return err
		}
		answered, refused = answered+crowd.answered.Load(), refused+crowd.refused.Load()
		rates, ratios = append(rates, r.rate()), append(ratios, r.rate()/quiet.rate())
		b.say("  with %d clients: %s, without them %s, ratio %.2f; %d lists and counts, %d refusals", hammerers, perSecond(r.rate()),
			perSecond(quiet.rate()), r.rate()/quiet.rate(), crowd.answered.Load(), crowd.refused.Load())
	}
	ratio := median(ratios)
	b.report.add(row{
		scenario: fmt.Sprintf("1 endpoint, %d clients hammer the API over a log of %d", hammerers, b.config.log), value: perSecond(median(rates)),
		compared: fmt.Sprintf("without them; %d lists and counts, %d refusals", answered, refused), ratio: fmt.Sprintf("%.2f", ratio),
		goal: fmt.Sprintf("at least %.2f", goalBeside), reached: ratio >= goalBeside,
	})
	return nil
}

// crowd are clients of the API that ask again and again.
type crowd struct {
	answered, refused atomic.Int64
	cancel            context.CancelFunc
	clients           sync.WaitGroup
}

func (c *crowd) stop() {
	c.cancel()
	c.clients.Wait()
}

// hammerPaths are what they ask for: lists of each kind, and what counts much.
var hammerPaths = []string{
	"/api/v1/deliveries", "/api/v1/deliveries?type=never.occurs", "/api/v1/deliveries?status=failed,missed", "/api/v1/endpoints?state=disabled", "/api/v1/replays",
}

// hammer begins a crowd.
func (d *database) hammer(ctx context.Context) (*crowd, error) {
	keys, err := access.NewKeys([]secrets.Text{secrets.New(consoleKey)})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &crowd{cancel: cancel}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: hammerers}}
	for i := range hammerers {
		name := fmt.Sprintf("venue_%d", i)
		switch i {
		case 0:
			name = "venue_busy"
		case 1:
			name = "venue_hundred"
		case 2:
			name = "venue_wide"
		}
		token, err := keys.Mint(name, access.ScopeRead, access.LongestToken, time.Now())
		if err != nil {
			cancel()
			return nil, err
		}
		c.clients.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				c.ask(ctx, client, "http://"+d.admin+hammerPaths[n%len(hammerPaths)], token.Reveal())
				select {
				case <-time.After(hammerPause):
				case <-ctx.Done():
				}
			}
		})
	}
	return c, nil
}

// ask sends one request and counts what came of it.
func (c *crowd) ask(ctx context.Context, client *http.Client, url, token string) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := client.Do(request)
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	if response.StatusCode == http.StatusOK {
		c.answered.Add(1)
	} else {
		c.refused.Add(1)
	}
}
