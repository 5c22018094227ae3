package admin

import (
	"os"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// TestMain gives the tests of this package one PostgreSQL, or is a client of them.
func TestMain(m *testing.M) {
	if os.Getenv(callersEnv) != "" {
		openConnections()
		return
	}
	testenv.Main(m, testenv.Options{Template: agenttest.Template})
}
