package lanes

import (
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// This file decides what is announced of an endpoint to the others of its venue (outbox.Notice). Each
// run of failures is announced at 50, 70 and 90 % of the failures that disable the endpoint, once
// each, and never before the fifth failure. If anything was announced, the recovery is announced
// too. The ledger announces the disabling, since a person may have been quicker.

// warnPercent are the parts of the failures that disable an endpoint at which people are warned.
var warnPercent = [...]int{50, 70, 90}

// leastWarned is the least number of failures in a row of which people are warned. With a small
// delivery.disable_after half of it is one failure or two, which a server has now and then. Each such
// failure would cause two notices: that the endpoint fails, and that it is well again. An endpoint
// that gets them may itself answer 503, which causes further notices.
const leastWarned = 5

// failuresAt returns the number of failures in a row that is so many per cent of those that disable
// an endpoint.
func (cfg *Config) failuresAt(percent int) int { return (cfg.DisableAfter*percent + 99) / 100 }

// announceFailuresLocked announces that the endpoint keeps failing, if it has come to another part.
// l.failures contains the failure already. Where several parts are reached at once, as with a small
// delivery.disable_after, the last one counts.
func (s *Scheduler) announceFailuresLocked(l *Lane, result sink.Result) {
	switch {
	case l.off == offDisabled:
		return
	case l.failures >= s.cfg.DisableAfter || result.Outcome == sink.Gone:
		l.announced = outbox.NoticeDisabled // the ledger announces it
		return
	case l.failures < leastWarned:
		return
	}
	level := 0
	for _, percent := range warnPercent {
		if l.failures >= s.cfg.failuresAt(percent) {
			level = percent
		}
	}
	if level <= l.announced {
		return
	}
	s.announceLocked(l, outbox.Notice{Level: level, Failures: l.failures, FirstFailure: l.firstFailure, LastError: result.Error})
}

// isWellAgain reports whether a success ends what is announced of the endpoint. An attempt that was
// under way when the endpoint was turned off ends nothing.
func (l *Lane) isWellAgain() bool { return l.announced > outbox.NoticeWell && l.off == "" }

// announceRecoveryLocked announces that the endpoint is well again, if others know that it was not.
// The counter still has the failures that are over.
func (s *Scheduler) announceRecoveryLocked(l *Lane) {
	if l.isWellAgain() {
		s.announceLocked(l, outbox.Notice{Level: outbox.NoticeWell, FirstFailure: l.firstFailure})
	}
}

func (s *Scheduler) announceLocked(l *Lane, n outbox.Notice) {
	s.noticeNumber++
	n.Number, n.Generation = s.noticeNumber, l.endpoint.Generation
	l.announced = n.Level
	l.notices = append(l.notices, n)
}

// announcedLocked forgets the notices that a committed record has taken along. If the ledger
// drops a Health, a later one has its notices too.
func (s *Scheduler) announcedLocked(r *outbox.Record) {
	if r.Health == nil || len(r.Health.Notices) == 0 {
		return
	}
	l := s.byID[r.Delivery.EndpointID]
	if l == nil {
		return
	}
	last := r.Health.Notices[len(r.Health.Notices)-1].Number
	for len(l.notices) > 0 && l.notices[0].Number <= last {
		l.notices = l.notices[1:]
	}
	if len(l.notices) == 0 {
		l.notices = nil
	}
}
