package testenv

import (
	"os"
	"strings"
)

// ClearEnvironment removes from this process, and so from the agents that it starts, the variables
// that configure an agent. They win over its file, and what a developer's shell has is no part of a
// test.
func ClearEnvironment() {
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if name == "DATABASE_URL" || strings.HasPrefix(name, "WEBHOOK_AGENT_") {
			_ = os.Unsetenv(name) // it fails for names alone that no environment has
		}
	}
}
