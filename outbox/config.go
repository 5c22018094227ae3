package outbox

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/secret"
)

// Config tells where the outbox is and how its stream is named.
type Config struct {
	// URL is a PostgreSQL connection URL or keyword/value string. The replication connection uses it too, so it
	// must reach the server itself, not a pooler.
	URL secret.Text
	// Table is the outbox table, schema-qualified.
	Table string
	// Columns are the names of the outbox table's columns.
	Columns Columns
	// Types are the patterns of the types that are events of the agent's; none stand for all. What does not match is passed over.
	Types []string
	// TimeZone is that of the column created when its type has none; "" is the database's.
	TimeZone string
	// Publication holds the outbox and the replays, inserts only; Publication_endpoints holds the endpoints.
	Publication string
	// Slot is the name of the replication slot and the key of the checkpoint. Names of slots are cluster-wide.
	Slot string
	// MaxBody is how many bytes the data of an event may have to be sent, zero for any number.
	MaxBody int
	// Watchful has a DB give up a statement that has no answer for answerTimeout, and not heed the statement_timeout of its role:
	// for a process that must go on by itself. Nobody waits for its statements as for those of a command.
	Watchful bool
	// Retention is how long the outbox and the log are kept, zero for ever. See Pruner.
	Retention time.Duration
	// Counts counts what is told nowhere else; nil counts nothing.
	Counts *Counts
	// Keys seal the secrets of endpoints.
	Keys secret.Keyring
	// Caught is told of every panic of a goroutine or a timer of this package, by any goroutine; it
	// must not wait. Without it a panic ends the process.
	Caught func(*panics.Error)
}

// Counts counts what happens to events. It outlives the parts that count.
type Counts struct {
	Filtered atomic.Int64 // events read that Config.Types does not ask for
	Reused   atomic.Int64 // deliveries of events whose id the log had for another event
	SetAside atomic.Int64 // deliveries that PostgreSQL refused to record
}

// Columns maps the columns of an outbox table that an app already has.
type Columns struct {
	ID, Type, Venue, Data, Created string
}

// endpointsPublication is the name of the publication that holds the endpoints. It is a second one because the outbox
// must be published with inserts only (an update without a replica identity would fail in the app), endpoints with
// all changes.
func (c Config) endpointsPublication() string { return c.Publication + "_endpoints" }

// tableName splits Table into schema and name; a name alone is looked for in the schema public.
func (c Config) tableName() (schema, name string) {
	if schema, name, ok := strings.Cut(c.Table, "."); ok {
		return schema, name
	}
	return "public", c.Table
}

// table returns Table quoted for use in SQL.
func (c Config) table() string {
	schema, name := c.tableName()
	return pgx.Identifier{schema, name}.Sanitize()
}

// quoteIdent quotes one identifier for use in SQL.
func quoteIdent(name string) string { return pgx.Identifier{name}.Sanitize() }
