package cli

import (
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// TestMain gives the tests of this package one PostgreSQL, whose databases begin with the agent's
// schema and publications.
func TestMain(m *testing.M) {
	configPaths = []string{localConfigPath}
	testenv.Main(m, testenv.Options{Template: agenttest.Template})
}
