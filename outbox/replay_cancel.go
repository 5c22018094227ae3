package outbox

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/crashpoint"
)

// A canceled replay goes back over what it has walked, from its cursor to its beginning, and ends
// where all that it has set back is found. No index leads to its deliveries: an index by replay
// would cost each requeue and each end of a replayed delivery, and the pending rows of an endpoint
// may be millions that are not the replay's. So each row is looked at once, in bounded steps, and
// memory knows how far they have come. Another agent begins at the cursor again, which costs reads
// alone.
//
// No row of the replay becomes pending behind the walk: nothing of it is started any more
// (LedgerConfig.Withdraw), and what is under way as the walk passes it is remembered.

// wayBack is how far a canceled replay has come.
type wayBack struct {
	began  bool
	from   replayPlace // where it goes on, of a range
	named  int         // how many of its named events were looked at
	walked bool        // it has looked at everything
	under  []string    // events of it that it met under way, and has not looked at since
}

// released returns the events that are under way no longer.
func (b *wayBack) released(kept []string) (events []string) {
	for _, id := range b.under {
		if !slices.Contains(kept, id) {
			events = append(events, id)
		}
	}
	return events
}

// waits reports whether nothing is left but what is under way.
func (b *wayBack) waits(kept []string) bool {
	return b.walked && len(b.under) > 0 && len(b.released(kept)) == 0
}

// kept returns the events of the endpoint whose attempts are under way or not recorded yet. It is
// never nil.
func (j *replayJob) kept(endpointID string) []string {
	kept := []string{}
	if j.withdraw != nil {
		kept = append(kept, j.withdraw(endpointID, j.ID)...)
	}
	return kept
}

// The rows are found by their place, and only then by their status: a plan by the index of the
// pending ones would read all of these. Only the index of an endpoint's part of the log has the
// order of lookBack: with endpoint_id = $1, or a lower bound for created, a plan may walk the log
// of all endpoints.
const (
	lookBack = `
with looked as materialized (
    select created, event_id, status, replay_id, attempts, former from webhooks.deliveries
    where endpoint_id >= $1 and (endpoint_id, created, event_id) <= ($1, $5, $6)
    order by endpoint_id desc, created desc, event_id desc limit $7
)`
	lookNamed = `
with looked as materialized (
    select created, event_id, status, replay_id, attempts, former from webhooks.deliveries
    where endpoint_id = $1 and event_id = any($5::text[])
)`
)

// restoreLooked takes back what the replay has set back, but for what is under way ($3). Of a
// delivery that an agent of before set back nothing is known but that it had not succeeded.
var restoreLooked = pieces{"end or restore": endOrRestore("p.former", "'its replay was canceled'")}.in(`, picked as (
    select created, event_id, attempts, former, event_id = any($3::text[]) as kept from looked
    where status = 'pending' and replay_id = $2 order by created desc, event_id desc limit $4
), restored as (
    update webhooks.deliveries d set ${end or restore}
    from picked p where d.endpoint_id = $1 and d.event_id = p.event_id and not p.kept
), place as (
    (select created, event_id from picked where (select count(*) from picked) = $4 order by created, event_id limit 1)
    union all
    (select created, event_id from looked where (select count(*) from picked) < $4 order by created, event_id limit 1)
)
select (select count(*) from looked), (select count(*) from picked),
       (select count(*) from picked where not kept and attempts > 0), (select count(*) from picked where not kept and attempts = 0),
       array(select event_id from picked where kept), p.created, p.event_id
from (select 1) one left join place p on true`)

var (
	restoreBack  = lookBack + restoreLooked
	restoreNamed = lookNamed + restoreLooked
)

// advanceCancel counts what was taken back, and ends the replay where nothing of it is pending.
const advanceCancel = `
update webhooks.replays set done = done + $2, unsent = unsent + $3, finished = case when $4::bool then now() end
from ` + agentEnds + `
where id = $1`

// takenBack is what one statement has taken back.
type takenBack struct {
	looked, picked int
	tried, unsent  int64
	under          []string
	created        *time.Time // the last place, null where there was none
	eventID        *string
}

func (t *takenBack) scan(row pgx.Row) error {
	return row.Scan(&t.looked, &t.picked, &t.tried, &t.unsent, &t.under, &t.created, &t.eventID)
}

// cancel takes back what the replay has set back. What is under way is left until it is recorded.
func (j *replayJob) cancel(ctx context.Context, tx querier, r *openReplay) (finished bool, err error) {
	kept := j.kept(r.endpointID)
	b := &j.backNext
	if !b.began {
		*b = wayBack{began: true, from: r.place()}
	}
	var taken, more takenBack
	named := b.released(kept)
	b.under = slices.DeleteFunc(slices.Clone(b.under), func(id string) bool { return slices.Contains(named, id) })
	if r.eventIDs != nil && !b.walked {
		rest := r.eventIDs[min(b.named, len(r.eventIDs)):]
		rest = rest[:min(jobStep, len(rest))]
		named = append(named, rest...)
		b.named += len(rest)
		b.walked = b.named >= len(r.eventIDs)
	}
	if len(named) > 0 {
		if err := taken.scan(tx.QueryRow(ctx, restoreNamed, r.endpointID, j.ID, kept, len(named), named)); err != nil {
			return false, err
		}
	}
	if r.eventIDs == nil && !b.walked {
		row := tx.QueryRow(ctx, restoreBack, r.endpointID, j.ID, kept, jobStep, b.from.created, b.from.eventID, lookStep)
		if err := more.scan(row); err != nil {
			return false, err
		}
		b.walked = more.looked < lookStep && more.picked < jobStep
		if more.created != nil {
			b.from = replayPlace{*more.created, *more.eventID}
			b.walked = b.walked || r.since != nil && b.from.created.Before(*r.since)
		}
	}
	crashpoint.Hit(crashpoint.InCancel)
	b.under = slices.Concat(b.under, taken.under, more.under)
	slices.Sort(b.under)
	b.under = slices.Compact(b.under)
	tried, unsent := taken.tried+more.tried, taken.unsent+more.unsent
	finished = r.waiting <= tried+unsent || b.walked && len(b.under) == 0
	if b.walked {
		j.rest = aheadPause
	}
	return finished, exec(ctx, tx, advanceCancel, j.ID, tried, unsent, finished)
}
