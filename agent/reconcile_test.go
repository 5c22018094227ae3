package agent

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// comparing makes a recovery whose ledger does not run.
func comparing(t *testing.T, barrier uint64) *recovery {
	t.Helper()
	s := newQuietOutage(t, testenv.NewDB(t))
	db := s.open()
	term := outbox.Term{Gap: "a test", Barrier: barrier, Coverage: s.coverage()}
	return newRecovery(db, db.Slot(s.cfg.Outbox.Slot), slog.New(slog.DiscardHandler), term, outbox.NewLedger(outbox.LedgerConfig{Term: term}), nil)
}

// A transaction that was open when the slot was made may hold events that neither the stream nor an
// earlier look brings.
func TestCompare_CompletesNoRecoveryBeforeTheTransactionsOfItsBeginningHaveEnded(t *testing.T) {
	t.Parallel()
	s := comparing(t, math.MaxInt64)
	ctx, cancel := context.WithTimeout(t.Context(), agenttest.Patience)
	defer cancel()
	if _, _, err := s.compare(ctx, completing, false); err == nil || !strings.Contains(err.Error(), "ends when the transactions have ended") {
		t.Errorf("the comparison returns %v", err)
	}
}

// What the stream is about to bring would be given rows by the comparison, and sent twice.
func TestCompare_LooksForNothingBeforeTheStreamHasComeToTheHorizon(t *testing.T) {
	t.Parallel()
	s := comparing(t, 0)
	for _, at := range []stage{sweeping, completing, wellKnown} {
		// Long enough for the looks before it on a busy machine.
		ctx, cancel := context.WithTimeoutCause(t.Context(), 3*time.Second, errors.New("it waits for the stream"))
		_, _, err := s.compare(ctx, at, false)
		cancel()
		if err == nil || !strings.Contains(err.Error(), "it waits for the stream") {
			t.Errorf("stage %d: the comparison does not wait and returns %v", at, err)
		}
	}
}
