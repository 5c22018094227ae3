package agent

import (
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/outbox"
)

func TestOpenFiles_LeaveRoomForAttempts(t *testing.T) {
	for _, test := range []struct{ limit, concurrency, wantConcurrency, wantIdle int }{
		{1 << 20, 256, 256, MostIdle},
		{4096, 256, 256, 2048},
		{1200, 256, 256, 600},
		{1088, 256, 256, 512},
		{1 << 20, 20_000, 20_000, 20_000},
		{1087, 256, 256, 511},
		{400, 256, 112, 112},
		{256, 256, 64, 64},
		{48, 256, 8, 8},
		{16, 256, 2, 4},
		{1, 256, 1, 1},
		{1024, 10_000, 320, 320},
		{128, 4, 4, 56},
	} {
		f := divideOpenFiles(test.limit, test.concurrency)
		if f.concurrency != test.wantConcurrency || f.idle != test.wantIdle {
			t.Errorf("limit %d, concurrency %d: %+v, want %d and %d", test.limit, test.concurrency, f, test.wantConcurrency, test.wantIdle)
		}
		enough := test.limit >= f.wanted
		if got := f.Finding(); (got.Level == outbox.LevelOK) != enough || !enough && !strings.Contains(got.Remedy, "raise the limit to") {
			t.Errorf("limit %d: %+v", test.limit, got)
		}
	}
}
