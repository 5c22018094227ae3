package outbox

import (
	"fmt"
	"strconv"
	"strings"
)

// Snapshot is PostgreSQL's pg_snapshot: it says which transactions had ended when it was taken. See
// https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT.
type Snapshot struct {
	xmin, xmax uint64
	running    map[uint64]struct{}
}

// ParseSnapshot parses the text form xmin:xmax:xip,xip.
func ParseSnapshot(s string) (Snapshot, error) {
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return Snapshot{}, fmt.Errorf("parse snapshot %q: want xmin:xmax:xip_list", s)
	}
	snap := Snapshot{running: map[uint64]struct{}{}}
	var err error
	if snap.xmin, err = strconv.ParseUint(parts[0], 10, 64); err == nil {
		snap.xmax, err = strconv.ParseUint(parts[1], 10, 64)
	}
	for xip := range strings.SplitSeq(parts[2], ",") {
		if xip == "" || err != nil {
			continue
		}
		var x uint64
		x, err = strconv.ParseUint(xip, 10, 64)
		snap.running[x] = struct{}{}
	}
	if err != nil {
		return Snapshot{}, fmt.Errorf("parse snapshot %q: %w", s, err)
	}
	return snap, nil
}

// Sees reports whether the transaction had committed when the snapshot was taken. The transaction
// must have committed by now. The stream has only the low 32 bits of a transaction's id. Sees takes
// the full id that is nearest to the snapshot. This is right while fewer than 2^31 transactions lie
// between the two, which PostgreSQL itself assumes.
func (s Snapshot) Sees(xid uint32) bool {
	full := int64(s.xmax) + int64(int32(xid-uint32(s.xmax)))
	if full < int64(s.xmin) {
		return true
	}
	if full >= int64(s.xmax) {
		return false
	}
	_, running := s.running[uint64(full)]
	return !running
}
