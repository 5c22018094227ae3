package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// EndpointStats are the outcomes of an endpoint's deliveries by the time of their events.
type EndpointStats struct {
	// From is when the first bucket begins, or from when on the rows were looked at.
	From time.Time `json:"from"`
	// Complete reports whether all rows of the window were looked at: at most statsRows are.
	Complete bool          `json:"complete"`
	Rows     int64         `json:"rows"`
	Buckets  []StatsBucket `json:"buckets"` // oldest first, without gaps
}

// StatsBucket counts the deliveries of a part of the window.
type StatsBucket struct {
	From      time.Time `json:"from"`
	Succeeded int64     `json:"succeeded"`
	Failed    int64     `json:"failed"`
	Missed    int64     `json:"missed"`
	Pending   int64     `json:"pending"`
	// The median and the 95th percentile of the last attempts' latency, nil where there was none.
	P50MS *int `json:"p50_ms"`
	P95MS *int `json:"p95_ms"`
}

// statsRows is how many rows EndpointStats looks at. The whole of a busy month would take seconds.
const statsRows = 20_000

// statsBuckets is how many parts a window has.
const statsBuckets = 60

const selectStats = `
with window_of as (
    select date_bin(make_interval(secs => $2), now(), 'epoch') - $3 * make_interval(secs => $2) as start, make_interval(secs => $2) as step
), looked as materialized (
    select d.status, d.created, d.last_latency_ms
    from window_of w cross join lateral (
        select * from webhooks.deliveries
        where endpoint_id = $1 and created >= w.start and created < w.start + ($3 + 1) * w.step{ and venue = @venue}
        order by created desc, event_id desc limit $4
    ) d
), counted as (
    select date_bin(w.step, created, 'epoch') as bucket, count(*) as rows,
           count(*) filter (where status = 'succeeded') as succeeded, count(*) filter (where status = 'failed') as failed,
           count(*) filter (where status = 'missed') as missed, count(*) filter (where status = 'pending') as pending,
           percentile_disc(0.5) within group (order by last_latency_ms) as p50, percentile_disc(0.95) within group (order by last_latency_ms) as p95
    from looked, window_of w
    group by 1
)
select b.at, coalesce(c.rows, 0), coalesce(c.succeeded, 0), coalesce(c.failed, 0), coalesce(c.missed, 0), coalesce(c.pending, 0), c.p50, c.p95,
       (select min(created) from looked)
from window_of w cross join generate_series(w.start, now(), w.step) b (at)
left join counted c on c.bucket = b.at
order by b.at`

// EndpointStats counts what came of an endpoint's deliveries within a window up to now.
func (v view) EndpointStats(ctx context.Context, endpointID string, window time.Duration) (stats EndpointStats, err error) {
	var oldest *time.Time
	err = v.look(ctx, "count the deliveries of an endpoint", func(q narrowed) error {
		if err := q.mustKnow(ctx, endpointID); err != nil {
			return err
		}
		stats.Buckets, err = queryRows(ctx, q, selectStats, func(row pgx.CollectableRow) (b StatsBucket, err error) {
			var rows int64
			err = row.Scan(&b.From, &rows, &b.Succeeded, &b.Failed, &b.Missed, &b.Pending, &b.P50MS, &b.P95MS, moment{&oldest})
			stats.Rows += rows
			return b, err
		}, endpointID, (window / statsBuckets).Seconds(), statsBuckets-1, statsRows)
		return err
	})
	if err != nil || len(stats.Buckets) == 0 {
		return stats, err
	}
	stats.Complete, stats.From = stats.Rows < statsRows, stats.Buckets[0].From
	if !stats.Complete && oldest != nil {
		stats.From = *oldest
	}
	return stats, nil
}
