package console

import (
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// TestMain gives the tests of this package one PostgreSQL.
func TestMain(m *testing.M) {
	testenv.Main(m, testenv.Options{Template: agenttest.Template})
}
