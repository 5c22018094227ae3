package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A user who names a PostgreSQL wants that one, not another that the demo installs.
func TestEnsurePostgres_InstallsNothingInPlaceOfTheUsersChoice(t *testing.T) {
	bin := t.TempDir()
	for _, program := range []string{"apt-get", "sudo"} {
		script := "#!/bin/sh\necho called >>" + bin + "/calls\n"
		if err := os.WriteFile(filepath.Join(bin, program), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("PG_BIN", filepath.Join(bin, "nothing"))
	err := ensurePostgres(t.Context(), newPrinter(io.Discard, false))
	if err == nil || !strings.Contains(err.Error(), "PG_BIN") {
		t.Errorf("the error is %v, want one that names PG_BIN", err)
	}
	if calls, err := os.ReadFile(filepath.Join(bin, "calls")); err == nil {
		t.Errorf("apt-get or sudo was called:\n%s", calls)
	}
}
