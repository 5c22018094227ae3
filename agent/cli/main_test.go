package cli

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// program is the name under which the test binary is the program itself, for tests that need a
// process of their own.
const program = "webhook-agent"

// TestMain gives the tests of this package one PostgreSQL, whose databases begin with the agent's
// schema and publications.
func TestMain(m *testing.M) {
	configPaths = []string{localConfigPath}
	if filepath.Base(os.Args[0]) == program {
		completionTimeout = time.Minute // under the race detector, a busy machine may take longer than a second
		os.Exit(Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	testenv.Main(m, testenv.Options{Template: agenttest.Template})
}
