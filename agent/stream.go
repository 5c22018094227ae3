package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/quintago/webhook-agent/backoff"
	"github.com/quintago/webhook-agent/outbox"
)

const (
	// soundConnection is how long a connection must have lasted so that the next one is tried with
	// the shortest wait.
	soundConnection = 10 * time.Second
	// resumeTimeout limits one try to continue a stream that broke.
	resumeTimeout = 10 * time.Second
)

// stream keeps the stream of a term going.
type stream struct {
	life   *lifetime
	term   outbox.Term
	db     *outbox.DB
	slot   *outbox.Slot
	tailer *outbox.Tailer
	lease  *lease
	log    *slog.Logger
}

// run runs the stream until the lifetime ends. It replaces a connection that broke; the lanes keep
// what was handed over meanwhile. It returns an error when another agent has taken over, when the
// slot is gone or was moved, when the server is another one, or when a change cannot be decoded.
// ended receives the error that ends the first connection.
func (s *stream) run(batches chan<- *outbox.Batch, ended <-chan error) error {
	take := s.life.take
	trouble := backoff.Trouble{Log: s.log, Level: slog.LevelWarn, Begins: "the stream broke; reconnecting", Ends: "the stream is back"}
	waits, began := backoff.New(), time.Now()
	for err := <-ended; ; err = s.tailer.Run(take, s.life.alive, batches) {
		if err == nil || take.Err() != nil {
			return nil //nolint:nilerr // the connection is not needed any more: the checkpoint is in the database
		}
		if errors.Is(err, outbox.ErrUndecodable) {
			return err
		}
		s.lease.broken.Store(true)
		s.db.Reset() // the same cause may have cut off these connections too
		trouble.Note(err)
		if time.Since(began) > soundConnection {
			waits = backoff.New()
		}
		if wait, _ := waits.Next(); !backoff.Sleep(take, wait) {
			return nil
		}
		resumed := backoff.Retry(take, waits, &trouble, endsTerm, func(ctx context.Context) error {
			again := s.resume(ctx)
			if errors.Is(again, outbox.ErrSlotActive) {
				// The server has not noticed yet that this agent's old connection is gone, so the
				// cause is still err.
				return err
			}
			return again
		})
		switch {
		case take.Err() != nil:
			return nil //nolint:nilerr // the term is ending, so the connection is not needed any more
		case resumed != nil:
			return resumed
		}
		s.lease.broken.Store(false)
		began = time.Now()
	}
}

// endsTerm reports whether this error ends the term, because its stream cannot be continued.
func endsTerm(err error) bool {
	for _, end := range []error{outbox.ErrFenced, outbox.ErrSlotGone, outbox.ErrSlotMoved, outbox.ErrOtherServer} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// resume reconnects and continues the stream within the same term.
func (s *stream) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	if err := s.tailer.Connect(ctx); err != nil {
		return err
	}
	if err := s.slot.CheckEpoch(ctx, s.term); err != nil {
		return err
	}
	if err := s.slot.CheckSlot(ctx, s.tailer); err != nil {
		return err
	}
	if err := s.tailer.Start(ctx, 0); err != nil {
		return err
	}
	// Another agent may have taken over and ended between the first check and Start.
	return s.slot.CheckEpoch(ctx, s.term)
}
