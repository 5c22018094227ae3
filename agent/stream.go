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
	// soundConnection is how long a connection must have lasted for the next one to be tried at once.
	soundConnection = 10 * time.Second
	// resumeTimeout bounds one try to go on with a stream that broke.
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

// run replaces a connection that broke by another one, until the lifetime ends. What was handed over stays with the lanes
// meanwhile. It returns an error when another agent has taken over, the slot is gone, or the server is no longer the same. What ends the
// first connection comes by ended.
func (s *stream) run(batches chan<- *outbox.Batch, ended <-chan error) error {
	take := s.life.take
	trouble := backoff.Trouble{Log: s.log, Level: slog.LevelWarn, Begins: "the stream broke; reconnecting", Ends: "the stream is back"}
	waits, began := backoff.New(), time.Now()
	for err := <-ended; ; err = s.tailer.Run(take, s.life.alive, batches) {
		if err == nil || take.Err() != nil {
			return nil //nolint:nilerr // a connection that broke while draining is of no importance: the checkpoint is in the database
		}
		if errors.Is(err, outbox.ErrUndecodable) {
			return err
		}
		s.lease.broken.Store(true)
		s.db.Reset() // what has broken the stream may have cut these connections off too
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
				return err // the server has not noticed yet that this agent's connection is gone: nothing new
			}
			return again
		})
		switch {
		case take.Err() != nil:
			return nil //nolint:nilerr // so is one that did not come back by then
		case resumed != nil:
			return resumed
		}
		s.lease.broken.Store(false)
		began = time.Now()
	}
}

// endsTerm reports whether the stream cannot be resumed within the term after this error: another one must begin.
func endsTerm(err error) bool {
	for _, end := range []error{outbox.ErrFenced, outbox.ErrSlotGone, outbox.ErrSlotMoved, outbox.ErrOtherServer} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// resume reconnects and goes on with the same term.
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
	// Between the check and the start another agent may have come and gone.
	return s.slot.CheckEpoch(ctx, s.term)
}
