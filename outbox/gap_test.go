package outbox

import (
	"strings"
	"testing"
)

func TestCheckpoint_IsTrustedOnlyOnItsServerAtItsPlace(t *testing.T) {
	t.Parallel()
	coverage := Coverage{Fingerprint: "as it was", Relations: []string{"1:", "2:7"}}
	for _, test := range []struct {
		name   string
		change func(*checkpoint, *server)
		reason string // "" means no gap
		void   bool   // the position means nothing on this server
	}{
		{"the same", func(*checkpoint, *server) {}, "", false},
		{"a slot that has gone back", func(_ *checkpoint, s *server) { s.confirmed = 10 }, "", false},
		{"a partition that is gone", func(_ *checkpoint, s *server) { s.coverage.Relations = []string{"1:"} }, "", false},
		{"a checkpoint that does not tell what was streamed", func(c *checkpoint, _ *server) { c.fingerprint, c.relations = nil, nil }, "", false},
		{"a recovery that was not completed", func(c *checkpoint, _ *server) { c.recovering = true }, "not completed", false},
		{"a server whose WAL ends before", func(_ *checkpoint, s *server) { s.insert = 99 }, "ahead of the server's WAL", true},
		{"a slot that was moved", func(_ *checkpoint, s *server) { s.confirmed = 101 }, "beyond the checkpoint", true},
		{"another timeline", func(_ *checkpoint, s *server) { s.timeline = 2 }, "timeline", false},
		{"other publications", func(_ *checkpoint, s *server) { s.coverage.Fingerprint = "otherwise" }, "have changed", false},
		{"another partition", func(_ *checkpoint, s *server) { s.coverage.Relations = []string{"1:", "2:7", "3:8"} }, "new partitions", false},
		{"a partition that was attached again", func(_ *checkpoint, s *server) { s.coverage.Relations = []string{"1:", "2:8"} }, "new partitions", false},
		{"a recovery in the future", func(c *checkpoint, s *server) { c.recovering, s.insert = true, 99 }, "", true},
		{"a recovery with a slot that was moved", func(c *checkpoint, s *server) { c.recovering, s.confirmed = true, 101 }, "", true},
	} {
		fingerprint := coverage.Fingerprint
		c := checkpoint{lsn: 100, systemID: "1", timeline: 1, database: "app", fingerprint: &fingerprint, relations: coverage.Relations}
		s := server{systemID: "1", timeline: 1, database: "app", insert: 200, confirmed: 100, coverage: coverage}
		test.change(&c, &s)
		reason, void := c.gap(s)
		if void != test.void || !strings.Contains(reason, test.reason) || (reason == "") != (test.reason == "" && !test.void) {
			t.Errorf("%s: gap %q, void %t", test.name, reason, void)
		}
	}
}
