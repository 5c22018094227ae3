package console

import (
	"context"
	"sync"
	"time"

	"github.com/quintago/webhook-agent/agent/feed"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// Pages that are open ask every few seconds. They share one look at the database, which is made when
// the last one is older than a pause. Nobody looks while no page is open.

const (
	// statusPause is the least time between two looks at where the agent stands.
	statusPause = 5 * time.Second
	// logPause is the same for the log while another agent leads, and logRows how many of its newest
	// rows one look takes.
	logPause = 2 * time.Second
	logRows  = 200
	// logIdle is a time without a look after which the rows that are there are not new.
	logIdle = 30 * time.Second
)

// sharedLook bounds how often something is looked at.
type sharedLook struct {
	mu sync.Mutex // also guards what was found
	at time.Time
}

// everyLocked calls look if the last call is at least pause ago. since is how long ago that is. Another
// page may wait for the look, so it does not end with the one that asks.
func (s *sharedLook) everyLocked(ctx context.Context, pause time.Duration, look func(ctx context.Context, since time.Duration)) {
	since := time.Since(s.at)
	if since < pause {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pageTime)
	defer cancel()
	look(ctx, since)
	s.at = time.Now()
}

// statusLook is where the agent stands, as it was a moment ago.
type statusLook struct {
	sharedLook
	found outbox.Overview
	err   error
}

func (s *statusLook) read(ctx context.Context, db *outbox.DB) (outbox.Overview, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.everyLocked(ctx, statusPause, func(ctx context.Context, _ time.Duration) {
		s.found, s.err = db.Overview(ctx)
		for i := range s.found.NotSending {
			s.found.NotSending[i].URL = sink.RedactURL(s.found.NotSending[i].URL)
		}
	})
	return s.found, s.err
}

// logLook passes on what another agent has recorded.
type logLook struct {
	sharedLook
	news feed.News
	err  error
}

func (l *logLook) pass(ctx context.Context, db *outbox.DB, to *feed.Feed) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.everyLocked(ctx, logPause, func(ctx context.Context, since time.Duration) {
		var found outbox.DeliveryPage
		if found, l.err = db.AllVenues().Deliveries(ctx, outbox.DeliveryFilter{Limit: logRows}); l.err != nil {
			return
		}
		if news := l.news.Of(found.Deliveries); since < logIdle {
			to.Seen(news)
		}
	})
	return l.err
}
