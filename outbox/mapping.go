package outbox

import "fmt"

// This file holds how SQL reads an event of the outbox, whichever table and columns it is mapped to.

// eventColumns returns the expressions for an event's id, venue, created and type, with the values that the stream would give
// to what is null or out of range.
func (db *DB) eventColumns() (id, venue, created, eventType string) {
	c := db.cfg.Columns
	at := "o." + quoteIdent(c.Created)
	return "o." + quoteIdent(c.ID), "o." + quoteIdent(c.Venue) + "::text",
		fmt.Sprintf("case when isfinite(%[1]s::timestamptz) then %[1]s::timestamptz else now() end", at),
		"coalesce(o." + quoteIdent(c.Type) + "::text, '')"
}

// wants is the condition that an endpoint e wants an event, given the expressions for the event's venue, its type and the time
// until which the endpoint can have been registered: the patterns of package agent in SQL.
func wants(venue, until, eventType string) string {
	return fmt.Sprintf(`e.venue = %[1]s and e.created <= %[2]s
      and exists (select from unnest(e.events) p where p in ('*', %[3]s) or (right(p, 2) = '.*' and starts_with(%[3]s, left(p, -1))))`,
		venue, until, eventType)
}

// isRecorded is the condition that an event has a delivery row for an endpoint, given the expressions for their ids.
func isRecorded(id, endpointID string) string {
	return fmt.Sprintf("exists (select from webhooks.deliveries d where d.event_id = %s and d.endpoint_id = %s)", id, endpointID)
}
