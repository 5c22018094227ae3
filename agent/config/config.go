package config

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/secret"
)

// Config is the configuration. The tag of a field is its key in the file (TOML). config.example.toml
// lists every key, with its default and its meaning.
type Config struct {
	Database  Database   `toml:"database"`
	Outbox    Outbox     `toml:"outbox"`
	Delivery  Delivery   `toml:"delivery"`
	Network   Network    `toml:"network"`
	Security  Security   `toml:"security"`
	Admin     Admin      `toml:"admin"`
	Console   Console    `toml:"console"`
	Log       Log        `toml:"log"`
	Tracing   Tracing    `toml:"tracing"`
	Endpoints []Endpoint `toml:"endpoint"`
	Notices   Notices    `toml:"notices"`

	// Warnings are sentences about settings that are allowed but may surprise. Load fills them; the
	// agent logs them at start.
	Warnings []string `toml:"-"`
	// DatabaseWarning is the one of them that says that DATABASE_URL is not used, or "". The other
	// commands show it, since a person who sets the variable expects another database.
	DatabaseWarning string `toml:"-"`
	// Sources has what sets each key that is set: the path of the file, a variable or a flag.
	Sources map[string]string `toml:"-"`
}

// Database names the PostgreSQL server that has the outbox and the agent's own tables.
type Database struct {
	// URL is a postgres:// URL or key=value words. It is DATABASE_URL when nothing else sets it.
	URL secret.Text `toml:"url"`
}

// Outbox names what the agent reads in the database.
type Outbox struct {
	Table       string `toml:"table"` // schema.table
	Publication string `toml:"publication"`
	Slot        string `toml:"slot"`
	// How long events and deliveries are kept; 0 means for ever.
	Retention time.Duration `toml:"retention"`
	// Patterns of the event types that the agent delivers.
	Types []string `toml:"types"`
	// TimeZone is the time zone of a column created that has none. "" means that of the database.
	TimeZone string  `toml:"time_zone"`
	Columns  Columns `toml:"columns"`
}

// Columns names the columns of an outbox table that the app had already.
type Columns struct {
	ID      string `toml:"id"`
	Type    string `toml:"type"`
	Venue   string `toml:"venue"`
	Data    string `toml:"data"`
	Created string `toml:"created"`
	// Traceparent is a column with the W3C trace context of an event; "" for none.
	Traceparent string `toml:"traceparent"`
}

// Delivery sets the limits of attempts and retries, and of the memory that they may use.
type Delivery struct {
	// The time for one attempt: connect, headers and body together.
	Timeout time.Duration `toml:"timeout"`
	// The wait before each attempt but the first.
	Retries      []time.Duration `toml:"retries"`
	DisableAfter int             `toml:"disable_after"`
	// The time between attempts to an endpoint that keeps failing; 0 means no such wait.
	FailingInterval time.Duration `toml:"failing_interval"`
	// Attempts under way at a time, all endpoints together.
	Concurrency         int           `toml:"concurrency"`
	EndpointConcurrency int           `toml:"endpoint_concurrency"`
	ShutdownTimeout     time.Duration `toml:"shutdown_timeout"`
	// Memory for events that wait in lanes.
	QueueMemory ByteSize `toml:"queue_memory"`
	MaxBody     ByteSize `toml:"max_body"` // greatest size of an event's data
}

// Network says which URLs of customers are allowed beside https on the public internet.
type Network struct {
	AllowHTTP     bool           `toml:"allow_http"`
	AllowNetworks []netip.Prefix `toml:"allow_networks"`
}

// Security says how secrets are stored.
type Security struct {
	// Keys seal the secrets of endpoints in the database. The first one seals; each one opens what
	// it has sealed.
	Keys []secret.Text `toml:"keys"`
}

// Admin is the listener for health and metrics.
type Admin struct {
	Listen string      `toml:"listen"` // host:port
	Token  secret.Text `toml:"token"`  // required unless Listen is a loopback address
	// Host names for which requests without the token are answered.
	Hosts []string `toml:"hosts"`
}

// Console says how the users of venues reach the API.
type Console struct {
	// URL is the origin under which they reach Listen, such as https://webhooks.example.com. "" means
	// that they name it by its address.
	URL string `toml:"url"`
	// Listen is host:port of a listener that takes the tokens of venues alone; "" for none.
	Listen string `toml:"listen"`
	// Keys verify the tokens of venues (package access).
	Keys []secret.Text `toml:"keys"`
	// Origins are those of the app's pages that may show a venue's pages in a frame and open sessions
	// for them.
	Origins []string `toml:"origins"`
	// Session is how long a venue's session lasts.
	Session time.Duration `toml:"session"`
}

// Notices says whether the agent announces failing endpoints to the others of their venue.
type Notices struct {
	Enabled bool `toml:"enabled"`
}

// Log says what is logged and in which form. The log goes to standard error.
type Log struct {
	Level  slog.Level `toml:"level"`
	Format string     `toml:"format"` // text or json
}

// Tracing says where traces of events are sent.
type Tracing struct {
	// Endpoint is the URL of a collector that takes OTLP over HTTP; "" sends no traces.
	Endpoint string `toml:"endpoint"`
	// Headers are sent to it. Each is a name and a value with a colon between them.
	Headers []secret.Text `toml:"headers"`
	// Sample is the share of events that is traced, of those without a traceparent.
	Sample float64 `toml:"sample"`
}

// URL returns Endpoint with the path of OTLP if it has none.
func (t Tracing) URL() string {
	u, err := url.Parse(t.Endpoint)
	if err != nil || u.Path != "" && u.Path != "/" {
		return t.Endpoint
	}
	return u.JoinPath("v1", "traces").String()
}

// Endpoint is an endpoint that the file manages: when an agent begins to lead, it is created,
// changed or removed so that the database agrees with the file.
type Endpoint struct {
	Venue string `toml:"venue"`
	// Secret, because its path and query may hold the customer's own token.
	URL         secret.Text `toml:"url"`
	Events      []string    `toml:"events"`
	Secret      secret.Text `toml:"secret"`
	Description string      `toml:"description"`
}

// Default returns the configuration of an empty file. It has every value but the database URL.
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
		Admin:   Admin{Listen: "127.0.0.1:8480"},
		Console: Console{Session: time.Hour},
		Log:     Log{Level: slog.LevelInfo, Format: "text"},
		Tracing: Tracing{Sample: 0.01},

		Notices: Notices{Enabled: true},
	}
}

// Error has everything that is wrong with a configuration. No problem quotes a secret.
type Error struct{ Problems []Problem }

// Problem is one sentence about a configuration.
type Problem struct {
	// Source is the file, the environment variable or the flag that the sentence is about. It is ""
	// if nothing sets what is missing.
	Source   string `json:"source"`
	Sentence string `json:"problem"`
}

// String returns the sentence behind its source.
func (p Problem) String() string {
	if p.Source == "" {
		return p.Sentence
	}
	return p.Source + ": " + p.Sentence
}

// Error returns the problems, one on each line.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Input is what a configuration is made of. The flag wins over the environment, the environment
// over the file, and the file over the defaults.
type Input struct {
	Path        string   // the file; "" when there is none
	Environ     []string // name=value, as os.Environ returns them
	DatabaseURL string   // the flag --database-url, which may be a reference; "" when it is not given
	// Secret is the flag --secret of a command, which may be a reference; "" when there is none.
	// The command resolves it. A variable that it refers to is in use.
	Secret string
}

// Load reads a configuration and checks it. All problems are returned together, as one *Error.
func Load(in Input) (*Config, error) {
	cfg := Default()
	env := newEnvironment(in.Environ)
	problems := &problemList{path: in.Path, sources: map[string]string{}, unreadable: map[string]bool{}}
	replaced := env.keys()
	flags := map[string]string{}
	if in.DatabaseURL != "" {
		flags["database.url"] = databaseURLFlag
		maps.Copy(replaced, flags)
	}
	file := &decoder{getenv: env.follow, problems: problems, replaced: replaced}
	noteReference(in.Secret, env.follow)
	mode, complete := file.read(cfg)
	env.decode(cfg, &decoder{getenv: env.follow, problems: problems, replaced: flags})
	cfg.nameDatabase(in, env, problems)
	var unused []string
	if complete {
		cfg.check(problems)
		unused = env.unknown(problems)
	}
	if len(problems.problems) > 0 {
		return nil, &Error{problems.problems}
	}
	cfg.Sources = problems.sources
	cfg.Warnings = append(cfg.warnings(env.get), unused...)
	if cfg.DatabaseWarning = cfg.databaseWarning(env); cfg.DatabaseWarning != "" {
		cfg.Warnings = append(cfg.Warnings, cfg.DatabaseWarning)
	}
	if file.literal != "" && mode&0o007 != 0 {
		cfg.Warnings = append(cfg.Warnings, fmt.Sprintf("%s is open to all users (mode %04o) and holds a secret (%s); run chmod 600 %s, or write env:NAME or file:/path in place of it",
			in.Path, mode, file.literal, in.Path))
	}
	return cfg, nil
}

// read decodes the file, if there is one, and returns its mode. The configuration is complete unless
// there is a file that cannot be read. What else such a file says nobody knows, so nothing is said
// about what is missing.
func (d *decoder) read(cfg *Config) (mode os.FileMode, complete bool) {
	path := d.problems.path
	if path == "" {
		return 0, true
	}
	text, err := os.ReadFile(path)
	var info os.FileInfo
	if err == nil {
		info, err = os.Stat(path)
	}
	if err != nil {
		d.problems.addTo(path, fmt.Sprintf("the configuration file cannot be read: %v; name another with --config, or write one by webhook-agent init", reason(err)))
		return 0, false
	}
	return info.Mode().Perm(), d.file(cfg, string(text))
}

// nameDatabase takes the database's URL from the flag, or from DATABASE_URL if nothing else names it.
func (c *Config) nameDatabase(in Input, env *environment, p *problemList) {
	const key = "database.url"
	if in.DatabaseURL != "" {
		p.sources[key], p.unreadable[key] = databaseURLFlag, false
		url, err := ResolveSecret(in.DatabaseURL, env.follow)
		if err != nil {
			p.each(key, err)
		}
		c.Database.URL, p.unreadable[key] = url, err != nil
	}
	if url := env.get(databaseURLVariable); c.Database.URL.IsZero() && url != "" {
		c.Database.URL, p.sources[key] = secret.New(url), databaseURLVariable
	}
}

// databaseWarning returns a sentence if DATABASE_URL names another database than the one that is
// used. The flag --database-url names one on purpose, so it causes none.
func (c *Config) databaseWarning(env *environment) string {
	source, url := c.Sources["database.url"], env.get(databaseURLVariable)
	if url == "" || url == c.Database.URL.Reveal() || source == databaseURLFlag {
		return ""
	}
	return fmt.Sprintf("%s is not used, because %s sets database.url; to use it, add --database-url env:%s", databaseURLVariable, source, databaseURLVariable)
}
