package outbox

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/panics"
	"github.com/quintago/webhook-agent/secret"
)

// Config says where the outbox is and how its stream is named.
type Config struct {
	// URL is a PostgreSQL connection URL or a keyword/value string. The replication connection uses
	// it too, so it must lead to the server itself, not to a pooler.
	URL secret.Text
	// Table is the outbox table, schema-qualified.
	Table string
	// Columns are the names of the outbox table's columns.
	Columns Columns
	// Types are the patterns of the event types that the agent handles. Without any, it handles
	// all. The agent skips events of other types.
	Types []string
	// TimeZone is the time zone of the column created, if the column's type has none. "" stands for
	// the time zone of the database.
	TimeZone string
	// Publication is the name of the publication of the outbox and the replays, which publishes
	// inserts only. The endpoints have a publication of their own, named Publication_endpoints.
	Publication string
	// Slot is the name of the replication slot and the key of the checkpoint. A slot's name is
	// unique in the whole cluster.
	Slot string
	// MaxBody is the most bytes that the data of an event may have; zero means no limit.
	MaxBody int
	// Watchful is for a process that must go on by itself, because no person waits for its
	// statements. The DB gives up a statement that has no answer within answerTimeout, and it
	// overrides the statement_timeout of its role.
	Watchful bool
	// Retention is how long the rows of the outbox and of the log are kept. Zero means for ever.
	// See Pruner.
	Retention time.Duration
	// Counts counts what is reported nowhere else. If it is nil, nothing is counted.
	Counts *Counts
	// Notices has the Ledger write notices about endpoints into the outbox.
	Notices bool
	// Keys are the keys that seal the secrets of endpoints.
	Keys secret.Keyring
	// Caught is called with every panic of a goroutine or a timer of this package. Any goroutine
	// may call it, and it must not wait. If it is nil, a panic ends the process.
	Caught func(*panics.Error)
	// Schema is the schema that this binary is taken to know. Zero means SchemaVersion. Tests of
	// upgrades set it, to have an older binary.
	Schema int

	pages bool // ForPages
}

const (
	// pagePool bounds the connections of what people look at in a running agent, so that it takes
	// none from the deliveries.
	pagePool = 4
	// venueTimeout is how long a query of a venue's people may take there. They are many.
	venueTimeout = 3 * time.Second
)

// ForPages returns the configuration of a DB for what people look at in a running agent: a pool of
// its own, and less time for the queries of venues.
func (c Config) ForPages() Config {
	c.pages = true
	return c
}

// Counts counts what happens to events. It outlives the parts that count.
type Counts struct {
	Filtered atomic.Int64 // events that were read but that Config.Types does not include
	Reused   atomic.Int64 // deliveries whose event has the id of another event in the log
	SetAside atomic.Int64 // deliveries that PostgreSQL refused to record
}

// Columns names the columns of an outbox table that an app already has.
type Columns struct {
	ID, Type, Venue, Data, Created string
	// Traceparent is optional: "" stands for no such column.
	Traceparent string
}

// endpointsPublication returns the name of the publication that holds the endpoints. A second
// publication is needed. The outbox must be published with inserts only, because an update of a
// table without a replica identity would fail in the app. The endpoints must be published with all
// changes.
func (c Config) endpointsPublication() string { return c.Publication + "_endpoints" }

// tableName splits Table into schema and name. A name without a schema is in the schema public.
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
