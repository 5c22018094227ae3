package config

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/secret"
)

func TestNewLogger_FollowsItsConfiguration(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		log := NewLogger(&out, Log{Level: slog.LevelWarn, Format: format})
		log.Info("too quiet")
		log.Warn("loud", "error", ugly, "secret", secret.New("sentinel"))
		text := out.String()
		if strings.Contains(text, "quiet") || !strings.Contains(text, "loud") {
			t.Errorf("%s: the level is not kept: %s", format, text)
		}
		if json.Valid(out.Bytes()) != (format == "json") {
			t.Errorf("%s: the format is not kept: %s", format, text)
		}
		if strings.Contains(text, "sentinel") || strings.Contains(text, "\x1b") || strings.Count(text, "\n") != 1 {
			t.Errorf("%s: a secret or a control character passed: %q", format, text)
		}
	}
}
