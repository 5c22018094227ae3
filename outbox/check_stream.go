package outbox

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// tablePrivileges are the privileges that the agent and its commands need on each table of the
// schema.
var tablePrivileges = []struct{ table, privileges string }{
	{"webhooks.schema_version", "SELECT"},
	{"webhooks.endpoints", "SELECT INSERT UPDATE DELETE"},
	{"webhooks.deliveries", "SELECT INSERT UPDATE DELETE"},
	{"webhooks.attempts", "SELECT INSERT DELETE"},
	{"webhooks.endpoint_health", "SELECT INSERT UPDATE DELETE"},
	{"webhooks.checkpoint", "SELECT INSERT UPDATE"},
	{"webhooks.replays", "SELECT INSERT UPDATE"},
	{"webhooks.event_types", "SELECT"},
	{"webhooks.removed_endpoints", "SELECT DELETE"},
	{"webhooks.endpoint_settings", "SELECT"},
}

// schemaTables returns the tables that the agent uses.
func schemaTables() (tables []string) {
	for _, need := range tablePrivileges {
		tables = append(tables, need.table)
	}
	return tables
}

const selectMissing = `
select tab from unnest($1::text[]) with ordinality as need(tab, place)
where not exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname || '.' || c.relname = tab)
order by place`

// missingTables returns the given tables that do not exist.
func missingTables(ctx context.Context, tx pgx.Tx, tables []string) ([]string, error) {
	return queryRows(ctx, tx, selectMissing, pgx.RowTo[string], tables)
}

const selectLackingUsage = `
select 'USAGE ON SCHEMA ' || quote_ident(nspname) from pg_namespace
where nspname = any($1) and not has_schema_privilege(oid, 'USAGE') order by nspname`

// selectLacking takes pairs of a table and a privilege and returns those that the role lacks. Other
// checks report tables that do not exist.
const selectLacking = `
select string_agg(need.privilege, ', ' order by need.place) || ' ON ' || quote_ident(n.nspname) || '.' || quote_ident(c.relname)
from unnest($1::text[], $2::text[]) with ordinality as need(tab, privilege, place)
join pg_namespace n on n.nspname = split_part(need.tab, '.', 1)
join pg_class c on c.relnamespace = n.oid and c.relname = substr(need.tab, strpos(need.tab, '.') + 1)
where not has_table_privilege(c.oid, need.privilege)
group by n.nspname, c.relname order by min(need.place)`

const privilegesThing = "privileges"

const selectUser = `select current_user::text`

func (db *DB) checkPrivileges(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	schema, table := db.cfg.tableName()
	tables, privileges := []string{schema + "." + table}, []string{"SELECT"}
	for _, need := range tablePrivileges {
		for privilege := range strings.FieldsSeq(need.privileges) {
			tables, privileges = append(tables, need.table), append(privileges, privilege)
		}
	}
	var role string
	if err := tx.QueryRow(ctx, selectUser).Scan(&role); err != nil {
		return nil, err
	}
	lacking, err := queryRows(ctx, tx, selectLackingUsage, pgx.RowTo[string], []string{"webhooks", schema})
	if err != nil {
		return nil, err
	}
	onTables, err := queryRows(ctx, tx, selectLacking, pgx.RowTo[string], tables, privileges)
	if err != nil {
		return nil, err
	}
	lacking = append(lacking, onTables...)
	missing, err := missingTables(ctx, tx, tables)
	if err != nil {
		return nil, err
	}
	if len(lacking) == 0 && len(missing) > 0 {
		// The checks of the schema and the outbox say what is missing. Its privileges are not known
		// yet.
		return nil, nil
	}
	if len(lacking) == 0 {
		return []Finding{fine(privilegesThing, "role %s has all it needs", role)}, nil
	}
	var found []Finding
	for _, grant := range lacking {
		found = append(found, failure(privilegesThing, "GRANT "+grant+" TO "+quoteIdent(role), "role %s lacks %s", role, grant))
	}
	return found, nil
}

const selectRelation = `
select c.relkind::text, c.relpersistence::text, row_security_active(c.oid), current_user::text
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = $1 and c.relname = $2`

// relationKinds are the kinds of relations that cannot be streamed (pg_class.relkind).
var relationKinds = map[string]string{
	"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index", "I": "an index",
	"c": "a composite type", "t": "a TOAST table",
}

// tableFault returns the reason why the outbox cannot be streamed or read, or nil.
func (c Config) tableFault(ctx context.Context, q querier, thing string) (*Finding, error) {
	schema, table := c.tableName()
	var (
		kind, persistence, role string
		hidesRows               bool
		fault                   Finding
	)
	err := q.QueryRow(ctx, selectRelation, schema, table).Scan(&kind, &persistence, &hidesRows, &role)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		fault = failure(thing, "correct outbox.table, or run webhook-agent migrate for the agent's own table", "there is no such table")
	case err != nil:
		return nil, err
	case relationKinds[kind] != "":
		fault = failure(thing, "name the table that the app inserts into", "it is %s, which has no stream", relationKinds[kind])
	case persistence != "p":
		fault = failure(thing, "ALTER TABLE "+c.table()+" SET LOGGED", "it is not logged, so it has no stream")
	case hidesRows:
		fault = failure(thing, "ALTER ROLE "+quoteIdent(role)+" BYPASSRLS, or make the role the owner of the table",
			"row-level security hides rows from the agent that the stream brings, so it could not find again what it has missed")
	default:
		return nil, nil
	}
	return &fault, nil
}

func (db *DB) checkOutbox(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	thing := "outbox " + db.cfg.Table
	if fault, err := db.cfg.tableFault(ctx, tx, thing); err != nil {
		return nil, err
	} else if fault != nil {
		return []Finding{*fault}, nil
	}
	types, err := db.cfg.columnTypes(ctx, tx)
	if err != nil {
		return nil, err
	}
	found := db.cfg.Columns.check(thing, types)
	if len(found) == 0 {
		found = append(found, fine(thing, "has the columns that the agent reads"))
	}
	identity, err := db.checkIdentity(ctx, tx, thing, types)
	if err != nil {
		return found, err
	}
	zone, err := db.checkZone(ctx, tx, types)
	return slices.Concat(found, identity, zone), err
}

const selectSlotState = `
select coalesce(plugin, ''), coalesce(database, ''), database = current_database() and plugin in ('pgoutput', ''), active, coalesce(wal_status, ''),
       temporary
from pg_replication_slots where slot_name = $1`

func (db *DB) checkSlot(ctx context.Context, tx pgx.Tx) ([]Finding, error) {
	thing := "slot " + db.cfg.Slot
	var (
		plugin, database, walStatus string
		ours, active, temporary     bool
	)
	err := tx.QueryRow(ctx, selectSlotState, db.cfg.Slot).Scan(&plugin, &database, &ours, &active, &walStatus, &temporary)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return []Finding{fine(thing, "there is none yet; the first run creates it")}, nil
	case err != nil:
		return nil, err
	case !ours:
		return []Finding{failure(thing, "choose another outbox.slot; slot names are shared by all databases of a server",
			"it belongs to something else (database %s, plugin %s)", database, plugin)}, nil
	case temporary:
		return []Finding{failure(thing, "end the session that holds it", "it is temporary, so it does not outlive a connection")}, nil
	case walStatus == "lost":
		return []Finding{warning(thing, "raise max_slot_wal_keep_size, or keep an agent running; the agent makes a new slot and sweeps the outbox for what it missed",
			"it is lost: PostgreSQL has removed WAL that it needed")}, nil
	case walStatus == "unreserved":
		return []Finding{warning(thing, "start the agent, or raise max_slot_wal_keep_size", "it is about to lose WAL that it needs")}, nil
	case active:
		return []Finding{fine(thing, "an agent is connected (WAL %s)", walStatus)}, nil
	default:
		return []Finding{fine(thing, "no agent is connected (WAL %s)", walStatus)}, nil
	}
}
