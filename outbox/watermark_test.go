package outbox

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// naiveMark is a watermark without bookkeeping: it computes everything anew each time.
type naiveMark struct {
	batches []*Tracked
	done    map[*Delivery]bool
}

func (n *naiveMark) isDone(b *Tracked) bool {
	if slices.ContainsFunc(b.Deliveries, func(d *Delivery) bool { return !n.done[d] }) {
		return false
	}
	if b.Opens == nil {
		return true
	}
	ended := false
	for _, piece := range n.batches {
		if piece.Piece == b.Opens {
			ended = ended || piece.Last
			if !n.isDone(piece) {
				return false
			}
		}
	}
	return ended
}

func (n *naiveMark) low() (low LSN) {
	for _, b := range n.batches {
		if !n.isDone(b) {
			return low
		}
		low = max(low, b.End)
	}
	return low
}

func (n *naiveMark) oldest() (time.Time, bool) {
	for _, b := range n.batches {
		if !n.isDone(b) {
			return b.Read, true
		}
	}
	return time.Time{}, false
}

func (n *naiveMark) oldestUnrecorded() (time.Time, bool) {
	for _, b := range n.batches {
		if slices.ContainsFunc(b.Deliveries, func(d *Delivery) bool { return !n.done[d] }) {
			return b.Read, true
		}
	}
	return time.Time{}, false
}

// overdue returns the first deliveries without a row that were read at or before the deadline.
func (n *naiveMark) overdue(deadline time.Time, limit int) (open []*Delivery) {
	for _, b := range n.batches {
		for _, d := range b.Deliveries {
			if len(open) < limit && !n.done[d] && !b.Read.After(deadline) {
				open = append(open, d)
			}
		}
	}
	return open
}

func TestWatermark_IsThatOfTheNaiveModel(t *testing.T) {
	for seed := range uint64(3000) {
		random := rand.New(rand.NewPCG(seed, 7))
		var (
			mark  watermark
			model = naiveMark{done: map[*Delivery]bool{}}
			open  []*Delivery // also some that are recorded already, to be recorded again
			holds []*Hold     // the open holds
			now   = time.Unix(1_000_000, 0)
			end   LSN
		)
		record := func(d *Delivery) { mark.recorded(d); model.done[d] = true }
		for step := range 60 {
			now = now.Add(time.Duration(random.IntN(400)) * time.Millisecond)
			switch random.IntN(5) {
			case 0, 1:
				b := &Tracked{Read: now, Idle: random.IntN(4) == 0}
				if !b.Idle {
					for range random.IntN(4) {
						b.Deliveries = append(b.Deliveries, &Delivery{})
					}
				}
				switch at := random.IntN(4); {
				case b.Idle:
				case at == 0:
					b.Opens = &Hold{}
					holds = append(holds, b.Opens)
				case at == 1 && len(holds) > 0:
					i := random.IntN(len(holds))
					if b.Piece, b.Last = holds[i], random.IntN(2) == 0; b.Last {
						holds = slices.Delete(holds, i, i+1)
					}
				}
				// Otherwise the transaction continues in the next batch.
				if b.Idle || b.Piece == nil && random.IntN(3) > 0 {
					end += LSN(random.IntN(100))
					b.End = end
				}
				model.batches = append(model.batches, b)
				open = append(open, b.Deliveries...)
				mark.track(b)
			case 2, 3:
				if len(open) > 0 {
					record(open[random.IntN(len(open))])
					mark.advance()
				}
			case 4:
				deadline := now.Add(-time.Second)
				limit := random.IntN(6)
				want := model.overdue(deadline, limit)
				var parked []*Delivery
				mark.overdue(deadline, limit, func(d *Delivery) { parked = append(parked, d); record(d) })
				mark.advance()
				if !slices.Equal(parked, want) {
					t.Fatalf("seed %d, step %d: parked %d deliveries, want %d", seed, step, len(parked), len(want))
				}
			}
			if want := model.low(); mark.low != want {
				t.Fatalf("seed %d, step %d: low is %s, want %s", seed, step, mark.low, want)
			}
			read, ok := mark.oldest()
			if want, wantOK := model.oldest(); ok != wantOK || !read.Equal(want) {
				t.Fatalf("seed %d, step %d: oldest is %v %t, want %v %t", seed, step, read, ok, want, wantOK)
			}
			read, ok = mark.oldestUnrecorded()
			if want, wantOK := model.oldestUnrecorded(); ok != wantOK || !read.Equal(want) {
				t.Fatalf("seed %d, step %d: the oldest without a row is %v %t, want %v %t", seed, step, read, ok, want, wantOK)
			}
		}
	}
}

func TestWatermark_StandsBeforeAnOpenDelivery(t *testing.T) {
	var mark watermark
	first, second := &Delivery{}, &Delivery{}
	mark.track(&Tracked{End: 10, Deliveries: []*Delivery{first}})
	mark.track(&Tracked{End: 20, Deliveries: []*Delivery{second}})
	mark.track(&Tracked{End: 30})
	mark.recorded(second)
	mark.recorded(second) // a second call must not count for the first delivery
	mark.advance()
	if mark.low != 0 {
		t.Fatalf("low is %s while the first delivery is open", mark.low)
	}
	mark.recorded(first)
	mark.advance()
	if mark.low != 30 || mark.entries != nil {
		t.Errorf("low is %s with %d batches kept, want 0/1E with none", mark.low, len(mark.entries))
	}
}

// A transaction with many deliveries is held for long, while others are recorded behind it.
func TestWatermark_WhatWaitsBehindAHoldTakesNoRoom(t *testing.T) {
	var mark watermark
	hold := &Hold{}
	mark.track(&Tracked{End: 10, Opens: hold})
	for i := range 10_000 {
		d := &Delivery{}
		b := &Tracked{End: LSN(20 + i), Deliveries: []*Delivery{d}}
		if i%2 == 0 {
			b = &Tracked{Piece: hold, Deliveries: []*Delivery{d}}
		}
		mark.track(b)
		mark.recorded(d)
		mark.advance()
		if n := len(mark.entries); n > 2*compactAt {
			t.Fatalf("%d entries are kept after %d batches that are recorded", n, i)
		}
	}
	if mark.low != 0 {
		t.Fatalf("low is %s while more is to come of the first transaction", mark.low)
	}
	mark.track(&Tracked{Piece: hold, Last: true})
	if mark.low != 10_019 {
		t.Errorf("low is %s when all is recorded, want 0/2723", mark.low)
	}
}

func TestWatermark_IsBusyOnlyByTransactions(t *testing.T) {
	var mark watermark
	mark.track(&Tracked{End: 10, Idle: true})
	if mark.busy {
		t.Error("an idle position makes the watermark busy: it would be stored each second, for ever")
	}
	mark.track(&Tracked{End: 20})
	if !mark.busy {
		t.Error("a transaction that nobody subscribed to does not make the watermark busy")
	}
}
