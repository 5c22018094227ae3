package outbox

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Outcome is what came of a delivery, for a list of endpoints with their newest ones.
type Outcome struct {
	Status    Status
	LatencyMS *int // of the last attempt; nil where there was none
}

const selectOutcomes = `
select e.id, d.status, d.last_latency_ms
from unnest($1::text[]) e (id) cross join lateral (
    select status, last_latency_ms, created, event_id from webhooks.deliveries
    where endpoint_id = e.id{ and venue = @venue}
    order by created desc, event_id desc limit $2
) d
order by e.id, d.created, d.event_id`

// Outcomes returns what came of the newest deliveries of some endpoints, by endpoint, the oldest
// first, at most so many of each.
func (v view) Outcomes(ctx context.Context, endpointIDs []string, limit int) (map[string][]Outcome, error) {
	outcomes := map[string][]Outcome{}
	if len(endpointIDs) == 0 {
		return outcomes, nil
	}
	err := v.look(ctx, "read the newest deliveries of endpoints", func(q narrowed) error {
		_, err := queryRows(ctx, q, selectOutcomes, func(row pgx.CollectableRow) (o Outcome, err error) {
			var id string
			err = row.Scan(&id, &o.Status, &o.LatencyMS)
			outcomes[id] = append(outcomes[id], o)
			return o, err
		}, endpointIDs, limit)
		return err
	})
	return outcomes, err
}

const selectHosts = `
select id, webhooks.url_host(url) from webhooks.endpoints where id = any($1){ and venue = @venue}
union all
select id, host from webhooks.removed_endpoints where id = any($1){ and venue = @venue}`

// Hosts returns the hosts of endpoints by their ids, also of those that were removed and have rows
// in the log.
func (v view) Hosts(ctx context.Context, endpointIDs []string) (map[string]string, error) {
	hosts := map[string]string{}
	if len(endpointIDs) == 0 {
		return hosts, nil
	}
	err := v.look(ctx, "read the hosts of endpoints", func(q narrowed) error {
		_, err := queryRows(ctx, q, selectHosts, func(row pgx.CollectableRow) (host string, err error) {
			var id string
			err = row.Scan(&id, &host)
			hosts[id] = host
			return host, err
		}, endpointIDs)
		return err
	})
	return hosts, err
}
