package testenv

import (
	"os"
	"testing"
)

func TestClearEnvironment_LeavesNothingThatConfiguresAnAgent(t *testing.T) {
	for _, name := range []string{"DATABASE_URL", "WEBHOOK_AGENT_CONFIG", "WEBHOOK_AGENT_LOG_LEVEL", "ANOTHER_WEBHOOK_AGENT_NAME"} {
		t.Setenv(name, "x")
	}
	ClearEnvironment()
	for name, want := range map[string]bool{"DATABASE_URL": false, "WEBHOOK_AGENT_CONFIG": false, "WEBHOOK_AGENT_LOG_LEVEL": false, "ANOTHER_WEBHOOK_AGENT_NAME": true, "PATH": true} {
		if _, set := os.LookupEnv(name); set != want {
			t.Errorf("%s is set: %t, want %t", name, set, want)
		}
	}
}
