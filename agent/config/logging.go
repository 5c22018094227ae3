package config

import (
	"io"
	"log/slog"
)

// NewLogger returns the agent's logger. It writes one line to w for each record, as key=value words
// or as JSON. Both forms escape control characters, so text from a customer's server cannot control
// the terminal that shows the log.
func NewLogger(w io.Writer, cfg Log) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.Level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
