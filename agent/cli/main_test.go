package cli

import (
	"os"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// TestMain gives the tests of this package one PostgreSQL, whose databases begin with the agent's
// schema and publications. What a developer's shell configures is no part of them.
func TestMain(m *testing.M) {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); name == "DATABASE_URL" || strings.HasPrefix(name, "WEBHOOK_AGENT_") {
			_ = os.Unsetenv(name) // it fails for names alone that cannot be
		}
	}
	testenv.Main(m, testenv.Options{Template: agenttest.Template})
}
