package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestAgent_UnseenOfItsProcesses(t *testing.T) {
	a := &agent{name: "a", log: filepath.Join(t.TempDir(), "agent-a.log")}
	content := `--- a.1 starts at 0.1s
time=2026-05-10T14:32:00Z level=WARN msg="recovery is complete" gap="the slot was lost" recovered_deliveries=9
--- a.2 starts at 10.5s
time=2026-05-10T14:32:11Z level=ERROR msg="events had passed the stream unseen although nothing was known to be wrong; they were found in the outbox" recovered_deliveries=12
time=2026-05-10T14:32:14Z level=ERROR msg="events had passed the stream unseen although nothing was known to be wrong; they were found in the outbox" recovered_deliveries=1`
	if err := os.WriteFile(a.log, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := a.unseen()
	if want := []unseen{{"a.2", 12}, {"a.2", 1}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	a.log += "x"
	if _, err := a.unseen(); err == nil {
		t.Error("no error without a log")
	}
}

// The sentence that unseenLine looks for is that of the agent, which writes it as text.
func TestUnseenLine_IsWhatTheAgentLogs(t *testing.T) {
	source, err := os.ReadFile("../../agent/recovery.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`.log.Error("events had passed the stream unseen `, `"recovered_deliveries", recovered)`} {
		if !strings.Contains(string(source), part) {
			t.Errorf("agent/recovery.go has no %s", part)
		}
	}
	if !strings.Contains(configTemplate.Root.String(), `format = "text"`) {
		t.Error("the agents are not configured to log as text")
	}
}
