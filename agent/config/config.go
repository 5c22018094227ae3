package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/secret"
)

// Config is the configuration file (TOML). The tag of a field is its key; config.example.toml lists every key with its
// default and says what it does.
type Config struct {
	Database  Database   `toml:"database"`
	Outbox    Outbox     `toml:"outbox"`
	Delivery  Delivery   `toml:"delivery"`
	Network   Network    `toml:"network"`
	Security  Security   `toml:"security"`
	Admin     Admin      `toml:"admin"`
	Log       Log        `toml:"log"`
	Endpoints []Endpoint `toml:"endpoint"`

	// Notices are what Load has seen that is allowed, and may surprise.
	Notices []string `toml:"-"`
}

// DatabaseConfig names the PostgreSQL server that holds the outbox and the agent's own tables.
type Database struct {
	URL secret.Text `toml:"url"` // a postgres:// URL or key=value words; DATABASE_URL when the key is absent
}

// OutboxConfig names what the agent reads in the database.
type Outbox struct {
	Table       string        `toml:"table"` // schema.table
	Publication string        `toml:"publication"`
	Slot        string        `toml:"slot"`
	Retention   time.Duration `toml:"retention"` // how long events and deliveries are kept, 0 for ever
	Types       []string      `toml:"types"`     // patterns of the types that are the agent's events
	TimeZone    string        `toml:"time_zone"` // of a column created without one; "" is the database's
	Columns     Columns       `toml:"columns"`
}

// ColumnsConfig maps what the agent needs to the columns of an outbox table that the app had before.
type Columns struct {
	ID      string `toml:"id"`
	Type    string `toml:"type"`
	Venue   string `toml:"venue"`
	Data    string `toml:"data"`
	Created string `toml:"created"`
}

// DeliveryConfig bounds attempts, retries and what they may use.
type Delivery struct {
	Timeout             time.Duration   `toml:"timeout"` // one deadline over connect, headers and body
	Retries             []time.Duration `toml:"retries"` // the wait before each attempt after the first
	DisableAfter        int             `toml:"disable_after"`
	FailingInterval     time.Duration   `toml:"failing_interval"` // between attempts to an endpoint that keeps failing
	Concurrency         int             `toml:"concurrency"`      // attempts in flight, all endpoints together
	EndpointConcurrency int             `toml:"endpoint_concurrency"`
	ShutdownTimeout     time.Duration   `toml:"shutdown_timeout"`
	QueueMemory         ByteSize        `toml:"queue_memory"` // for events that wait in lanes
	MaxBody             ByteSize        `toml:"max_body"`     // of an event's data
}

// NetworkConfig says which customers' URLs are acceptable beyond https on the public internet.
type Network struct {
	AllowHTTP     bool           `toml:"allow_http"`
	AllowNetworks []netip.Prefix `toml:"allow_networks"`
}

// SecurityConfig says how secrets are stored.
type Security struct {
	// Keys seal the secrets of endpoints in the database: the first seals, all open.
	Keys []secret.Text `toml:"keys"`
}

// AdminConfig is the listener for health, metrics and the API.
type Admin struct {
	Listen string      `toml:"listen"` // host:port
	Token  secret.Text `toml:"token"`  // required unless Listen is a loopback address
	Hosts  []string    `toml:"hosts"`  // names by which it may be asked without the token
}

// LogConfig says what is logged and how. The log goes to standard error.
type Log struct {
	Level  slog.Level `toml:"level"`
	Format string     `toml:"format"` // text or json
}

// EndpointConfig is an endpoint that the file manages: it is created, changed and removed with the file, at start.
type Endpoint struct {
	Venue       string      `toml:"venue"`
	URL         secret.Text `toml:"url"` // its path and query may hold the customer's own token
	Events      []string    `toml:"events"`
	Secret      secret.Text `toml:"secret"`
	Description string      `toml:"description"`
}

// Default returns the configuration of an empty file. Only the database URL is missing to run it.
func Default() *Config {
	return &Config{
		Outbox: Outbox{
			Table:       "webhooks.outbox",
			Publication: "webhooks_outbox",
			Slot:        "webhooks_agent",
			Retention:   30 * Day,
			Types:       []string{"*"},
			Columns:     Columns{ID: "id", Type: "type", Venue: "venue", Data: "data", Created: "created"},
		},
		Delivery: Delivery{
			Timeout:             15 * time.Second,
			Retries:             []time.Duration{5 * time.Second, 25 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute},
			DisableAfter:        100,
			FailingInterval:     10 * time.Second,
			Concurrency:         256,
			EndpointConcurrency: 16,
			ShutdownTimeout:     20 * time.Second,
			QueueMemory:         64 << 20,
			MaxBody:             4 << 20,
		},
		Admin: Admin{Listen: "127.0.0.1:8480"},
		Log:   Log{Level: slog.LevelInfo, Format: "text"},
	}
}

// Error holds everything that is wrong with a configuration. No problem names a secret.
type Error struct {
	Path     string
	Problems []string // one sentence each
}

// Error returns the problems, one on each line, each with the path of the file.
func (e *Error) Error() string {
	return e.Path + ": " + strings.Join(e.Problems, "\n"+e.Path+": ")
}

// Load reads the file at path over the defaults and checks the result. getenv (os.Getenv outside of tests) answers
// for env: references and DATABASE_URL. What is wrong comes back as one *ConfigError with all problems.
func Load(path string, getenv func(string) string) (*Config, error) {
	text, err := os.ReadFile(path)
	var info os.FileInfo
	if err == nil {
		info, err = os.Stat(path)
	}
	if err != nil {
		return nil, &Error{path, []string{fmt.Sprintf(
			"the configuration file cannot be read: %v; name another with --config or start from config.example.toml", reason(err))}}
	}
	cfg := Default()
	problems := &problemList{unreadable: map[string]bool{}}
	literal := decodeConfig(cfg, string(text), getenv, problems)
	if cfg.Database.URL.IsZero() {
		cfg.Database.URL = secret.New(getenv("DATABASE_URL"))
	}
	cfg.check(problems)
	if len(problems.sentences) > 0 {
		return nil, &Error{path, problems.sentences}
	}
	cfg.Notices = cfg.notices(getenv)
	if mode := info.Mode().Perm(); literal != "" && mode&0o007 != 0 {
		cfg.Notices = append(cfg.Notices, fmt.Sprintf("%s is open to all users (mode %04o) and holds a secret (%s); run chmod 600 %s, or write env:NAME or file:/path in place of it",
			path, mode, literal, path))
	}
	return cfg, nil
}
