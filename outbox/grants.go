package outbox

import (
	"fmt"
	"strings"
)

// The roles that PrintGrants names beside the agent's, as examples.
const (
	appRole     = "app"
	supportRole = "support"
)

// PrintGrants returns the statements that give roles what they need: the agent's, which is that of
// Config.URL; the app's, which inserts events and may change endpoints; and that of people who read
// the log and see endpoints without their secrets. The last two have names that the reader
// replaces.
func PrintGrants(cfg Config) string {
	_, agent, _ := cfg.names()
	agent = quoteIdent(agent)
	var b strings.Builder
	grant := func(privileges, on, to string) { fmt.Fprintf(&b, "GRANT %s ON %s TO %s;\n", privileges, on, to) }

	fmt.Fprintf(&b, "-- The agent. Its role also needs REPLICATION (ALTER ROLE %s REPLICATION).\n", agent)
	grant("USAGE", "SCHEMA webhooks", agent)
	if schema, _ := cfg.tableName(); schema != "webhooks" {
		grant("USAGE", "SCHEMA "+quoteIdent(schema), agent)
	}
	onOutbox := "SELECT"
	if cfg.Notices {
		onOutbox += ", INSERT"
	}
	if cfg.Retention > 0 {
		onOutbox += ", DELETE" // pruned
	}
	grant(onOutbox, cfg.table(), agent)
	if cfg.Notices && cfg.Table != ownTable {
		fmt.Fprintf(&b, grantSequence, quoteText(cfg.table()), quoteText(cfg.Columns.ID), quoteText(" TO "+agent))
	}
	for _, need := range tablePrivileges {
		grant(strings.ReplaceAll(need.privileges, " ", ", "), need.table, agent)
	}
	if cfg.Retention > 0 {
		grant("DELETE", "webhooks.replays", agent) // pruned once they have ended
	}

	fmt.Fprintf(&b, "\n-- The app: put its role in place of %s.\n", appRole)
	grant("USAGE", "SCHEMA webhooks", appRole)
	if cfg.Table == ownTable {
		grant("SELECT, INSERT", ownTable, appRole) // SELECT is for INSERT ... RETURNING
	}
	grant("SELECT, INSERT, UPDATE, DELETE", "webhooks.endpoints, webhooks.event_types", appRole)
	grant("SELECT, INSERT, UPDATE, DELETE", "webhooks.replays", appRole) // to delete one is to cancel it
	grant("SELECT", shownRelations, appRole)

	fmt.Fprintf(&b, "\n-- People who look things up, without secrets: put their role in place of %s.\n", supportRole)
	grant("USAGE", "SCHEMA webhooks", supportRole)
	grant("SELECT", "webhooks.replays, webhooks.event_types, "+shownRelations, supportRole)
	return b.String()
}

// grantSequence is for a mapped outbox whose ids come from a sequence (serial). Only the database
// knows its name.
const grantSequence = `DO $grant$ BEGIN -- the sequence of its ids, if there is one
    EXECUTE coalesce('GRANT USAGE ON SEQUENCE ' || pg_get_serial_sequence(%s, %s) || %s, 'SELECT');
END $grant$;
`

// shownRelations are the relations that hold no secret and that nobody but the agent writes.
const shownRelations = "webhooks.deliveries, webhooks.attempts, webhooks.endpoint_settings, webhooks.removed_endpoints"
