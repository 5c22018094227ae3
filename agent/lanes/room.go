package lanes

import "github.com/quintago/webhook-agent/outbox"

// largeDelivery is the size in bytes from which on a delivery counts as large. Most events are far
// smaller. Ten thousand endpoints that hang, each with one that is not large, take 160 MiB at most.
const largeDelivery = 16 << 10

// room is the memory for large deliveries of lanes that hold nothing else. A lane may always hold one
// small delivery. If it could always hold a large one, a hundred endpoints that hang would hold a
// hundred times delivery.max_body. So such lanes take up room, and when there is none, their
// deliveries wait in the database. Lanes that have failed have a room of their own, so each dead
// endpoint is in the way of the others for one attempt only.
type room struct {
	bytes int // of the deliveries for which lanes have taken it up, and of what is promised
	// waiting are the lanes whose next delivery has found no room, the first one first. Some of them
	// may not wait any more.
	waiting []*Lane
}

// roomOf returns the room that a lane takes up.
func (s *Scheduler) roomOf(l *Lane) *room {
	return &s.rooms[min(l.failures, 1)]
}

// hasRoom reports whether there is memory for a delivery. A proven lane that holds nothing may always
// hold a large one, since it is most likely done with it within a second.
func (s *Scheduler) hasRoom(l *Lane, d *outbox.Delivery) bool {
	size := d.Size()
	if l.bytes == 0 {
		return size < s.cfg.Large || l.proven || s.roomFits(s.roomOf(l), size)
	}
	return l.bytes+size <= s.cfg.QueueBytes/laneShare && l.venue.bytes+size <= venueShare*(s.cfg.QueueBytes-s.bytes-size)
}

// roomFits reports whether a large delivery fits into a room, which is half of delivery.queue_memory.
// One that is larger than half of the room counts as so much: it need not wait until all of it is
// free.
func (s *Scheduler) roomFits(r *room, size int) bool {
	most := s.cfg.QueueBytes / 2
	return r.bytes+min(size, most/2) <= most
}

// freeLocked frees a delivery's body and the memory that was counted for it.
func (s *Scheduler) freeLocked(l *Lane, d *outbox.Delivery) {
	s.holdLocked(l, -d.Size())
	d.Body = nil
}

// holdLocked adds the size of a delivery to the bytes that its lane holds. A negative one takes it
// away.
func (s *Scheduler) holdLocked(l *Lane, size int) {
	first := l.bytes == 0
	l.bytes += size
	l.venue.bytes += size
	s.bytes += size
	switch {
	case first && size >= s.cfg.Large:
		s.takeRoomLocked(l, size)
	case l.bytes == 0:
		s.yieldRoomLocked(l)
	}
}

// takeRoomLocked counts a delivery in the lane's room until leaveRoomLocked.
func (s *Scheduler) takeRoomLocked(l *Lane, size int) {
	s.leaveRoomLocked(l) // a promise
	l.room, l.taken = s.roomOf(l), size
	l.room.bytes += size
}

// yieldRoomLocked gives what the lane has taken up to those that wait: it holds nothing any more, or it
// was turned off before its refill.
func (s *Scheduler) yieldRoomLocked(l *Lane) {
	if l.room != nil {
		s.leaveRoomLocked(l)
		s.promiseLocked()
	}
}

// leaveRoomLocked ends what the lane has taken up, or what was promised to it. A refill calls it before
// it puts what it has brought into the lanes, and promises the rest to others only after that.
func (s *Scheduler) leaveRoomLocked(l *Lane) {
	if l.room != nil {
		l.room.bytes -= l.taken
		l.room, l.taken = nil, 0
	}
}

// awaitRoomLocked puts a lane that is full behind those that wait for room, if it holds nothing.
// Otherwise the end of its own attempt makes room. d is its next delivery.
func (s *Scheduler) awaitRoomLocked(l *Lane, d *outbox.Delivery) {
	if l.bytes > 0 {
		return
	}
	if l.wants = d.Size(); !l.waits {
		l.waits = true
		r := s.roomOf(l)
		r.waiting = append(r.waiting, l)
	}
}

// promiseLocked has the first lanes that wait refilled, as far as there is room for what they want.
// They take it up at once, so a few are refilled at a time, and not all of them again and again.
func (s *Scheduler) promiseLocked() {
	for i := range s.rooms {
		for r := &s.rooms[i]; len(r.waiting) > 0; {
			l := r.waiting[0]
			still := s.byID[l.id] == l && l.full && l.bytes == 0 && l.off == ""
			if still && !s.roomFits(s.roomOf(l), l.wants) {
				break
			}
			pop(&r.waiting)
			if l.waits = false; still {
				l.full = false
				s.takeRoomLocked(l, l.wants)
				s.scheduleLocked(l)
			}
		}
	}
}
