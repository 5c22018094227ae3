package api

import (
	"bytes"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/secret"
)

var update = flag.Bool("update", false, "write testdata/openapi.json anew")

func TestDocument_ChangesOnlyOnPurpose(t *testing.T) {
	s, err := New(Config{Config: config.Default(), Log: slog.New(slog.DiscardHandler), Version: "test"}, access.NewVerifier(secret.Text{}, access.Keys{}))
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "openapi.json")
	if *update {
		if err := os.WriteFile(golden, s.document, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.document, want) {
		t.Errorf("the document differs from %s; see the change with: go test ./agent/api -update; git diff", golden)
	}
}
