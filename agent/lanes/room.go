package lanes

import "github.com/quintago/webhook-agent/outbox"

// largeDelivery is the size in bytes from which on a delivery counts as large. Most events are far
// smaller. Ten thousand endpoints that hang, each with one that is not large, take 160 MiB at most.
const largeDelivery = 16 << 10

// room is what is known of the memory for large deliveries. Small ones always find some, because each
// lane may hold one. Large ones share delivery.queue_memory: otherwise a hundred endpoints that hang
// could hold a hundred times delivery.max_body. The rest waits in the database.
type room struct {
	bytes int // of the large deliveries in all lanes, and of what is promised
	// waiting are the lanes that hold nothing and whose next delivery found no room: those that had
	// not failed, and those that had, each in their order. Some of them may not wait any more.
	waiting [2][]*Lane
}

// hasRoom reports whether there is memory for a delivery. A lane may always hold one that is not
// large. A proven lane may always hold a large one, since it is most likely done with it within a
// second.
func (s *Scheduler) hasRoom(l *Lane, d *outbox.Delivery) bool {
	size := d.Size()
	if l.bytes == 0 {
		return size < s.cfg.Large || l.proven || s.largeFits(l, size)
	}
	return l.bytes+size <= s.cfg.QueueBytes/laneShare && l.venue.bytes+size <= venueShare*(s.cfg.QueueBytes-s.bytes-size)
}

// largeFits reports whether there is memory for one more large delivery. Lanes that have failed leave
// half of it to the others. A delivery that is larger than half of what there is counts as so much: it
// need not wait until there is no other at all.
func (s *Scheduler) largeFits(l *Lane, size int) bool {
	most := s.cfg.QueueBytes
	if l.failures > 0 {
		most /= 2
	}
	return s.room.bytes+min(size, most/2) <= most
}

// freeLocked frees a delivery's body and the memory that was counted for it.
func (s *Scheduler) freeLocked(l *Lane, d *outbox.Delivery) {
	s.holdLocked(l, -d.Size())
	d.Body = nil
}

// holdLocked adds the size of a delivery to the bytes that its lane holds. A negative one takes it
// away.
func (s *Scheduler) holdLocked(l *Lane, size int) {
	l.bytes += size
	l.venue.bytes += size
	s.bytes += size
	if max(size, -size) >= s.cfg.Large {
		s.room.bytes += size
		s.promiseLocked()
	}
}

// awaitRoomLocked puts a lane that is full into the row of those that wait for room, if it holds
// nothing. Otherwise the end of its own attempt makes room. d is its next delivery.
func (s *Scheduler) awaitRoomLocked(l *Lane, d *outbox.Delivery) {
	if l.bytes > 0 {
		return
	}
	if l.wants = d.Size(); !l.waits {
		l.waits = true
		row := &s.room.waiting[min(l.failures, 1)]
		*row = append(*row, l)
	}
}

// promiseLocked has the first lanes that wait refilled, as far as there is room for what they want.
// The promise holds until their refill has ended. So a few are refilled at a time, and not all of
// them again and again.
func (s *Scheduler) promiseLocked() {
	for i := range s.room.waiting {
		for row := &s.room.waiting[i]; len(*row) > 0; {
			l := (*row)[0]
			still := s.byID[l.id] == l && l.full && l.bytes == 0 && l.off == ""
			if still && !s.largeFits(l, l.wants) {
				break
			}
			pop(row)
			if l.waits = false; still {
				l.full, l.promised = false, true
				s.room.bytes += l.wants
				s.scheduleLocked(l)
			}
		}
	}
}

// endPromiseLocked ends the promise to a lane, because it was refilled or is turned off. The caller
// calls promiseLocked then, after a refill has put what it brought into the lanes.
func (s *Scheduler) endPromiseLocked(l *Lane) {
	if l.promised {
		l.promised = false
		s.room.bytes -= l.wants
	}
}
