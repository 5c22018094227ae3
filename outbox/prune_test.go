package outbox

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/testenv"
)

// pruning is a Pruner of a month on a test's database.
type pruning struct {
	*Pruner
	env *testenv.DB
}

func newPruning(t *testing.T, db *DB, env *testenv.DB) *pruning {
	t.Helper()
	db.cfg.Retention = 30 * 24 * time.Hour
	return &pruning{db.configured().NewPruner(newTerm(t, db)), env}
}

// settleHorizon gives the checkpoint a horizon that sees all that is committed now, as a comparison does.
func settleHorizon(t *testing.T, db *DB, env *testenv.DB) {
	t.Helper()
	last := testenv.QueryOne[string](t, env, `select pg_current_xact_id()::text`)
	testenv.Eventually(t, othersPatience, func() error {
		env.Exec(t, `update webhooks.checkpoint set horizon = pg_current_snapshot(), relations = `+relationsOf("$1::text", "$2::text"), db.cfg.table(), db.cfg.Publication)
		if !testenv.QueryOne[bool](t, env, `select pg_snapshot_xmin(horizon) > $1::text::xid8 from webhooks.checkpoint`, last) {
			return fmt.Errorf("a transaction is open that is older than %s", last)
		}
		return nil
	})
}

// table makes the steps of a run for one table and returns what they deleted, and how many there were.
func (p *pruning) table(t *testing.T, table PrunedTable) (pruned Pruned, steps int, err error) {
	t.Helper()
	pruned = Pruned{}
	for done := false; !done && err == nil; steps++ {
		if steps > 1000 {
			t.Fatalf("the walk of %s does not end", table)
		}
		var step Pruned
		step, done, err = p.Step(t.Context(), table)
		for from, n := range step {
			if n > pruneBatch && from != PrunedAttempts {
				t.Errorf("one transaction deleted %d rows of %s", n, from)
			}
			pruned[from] += n
		}
	}
	return pruned, steps, err
}

// run makes a run and returns what it deleted.
func (p *pruning) run(t *testing.T) Pruned {
	t.Helper()
	must(t, p.Begin(t.Context()))
	total := Pruned{}
	for _, table := range []PrunedTable{PrunedOutbox, PrunedDeliveries, PrunedReplays} {
		pruned, _, err := p.table(t, table)
		must(t, err)
		for from, n := range pruned {
			total[from] += n
		}
	}
	return total
}

// again has the walks of the next run begin anew.
func (p *pruning) again() { p.restart = time.Time{} }

// addOld writes an event of so many days ago with a delivery and a failed attempt for each of the statuses, to ep_1, ep_2 and so on.
func addOld(t *testing.T, env *testenv.DB, id string, days int, statuses ...Status) {
	t.Helper()
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created) values ($1, 'lead.created', 'venue_a', '{}', now() - make_interval(days => $2))`, id, days)
	addOldLog(t, env, id, days, statuses...)
}

// addOldLog is addOld without the event.
func addOldLog(t *testing.T, env *testenv.DB, id string, days int, statuses ...Status) {
	t.Helper()
	for i, status := range statuses {
		endpoint := fmt.Sprintf("ep_%d", i+1)
		env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, next_attempt_at, created)
		    values ($1, $2, 'venue_a', 'lead.created', $3, case when $3 = 'pending' then now() end, now() - make_interval(days => $4))`, id, endpoint, status, days)
		env.Exec(t, `insert into webhooks.attempts (event_id, endpoint_id, attempt, at) values ($1, $2, 1, now())`, id, endpoint)
	}
}

// kept lists what is left: events, deliveries, attempts and replays.
func kept(t *testing.T, env *testenv.DB) []string {
	t.Helper()
	return testenv.QueryAll[string](t, env, `
	    select 'event ' || id from webhooks.outbox
	    union all select format('delivery %s/%s', event_id, endpoint_id) from webhooks.deliveries
	    union all select format('attempt %s/%s', event_id, endpoint_id) from webhooks.attempts
	    union all select 'replay ' || id from webhooks.replays
	    order by 1`)
}

func TestPruner_DeletesWhatIsOldAndHasEndedAndNothingElse(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	p := newPruning(t, db, env)
	addOld(t, env, "done", 31, Succeeded, Failed, Missed)
	addOld(t, env, "unwanted", 31)
	addOldLog(t, env, "orphan", 31, Failed)
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, state, finished)
	    select state || ' long ago', 'ep_1', state, now() - interval '31 days' from unnest('{done,failed}'::text[]) state`)

	addOld(t, env, "young", 29, Succeeded)
	addOld(t, env, "pending", 31, Pending)
	addOld(t, env, "partly", 31, Succeeded, Pending)
	addOldLog(t, env, "orphan_pending", 31, Pending)
	for _, created := range []string{"infinity", "-infinity"} {
		env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created) values ($1::text, 'x', 'venue_a', '{}', $1::text::timestamptz)`, created)
		env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created)
		    values ('log ' || $1::text, 'ep_1', 'venue_a', 'x', 'failed', $1::text::timestamptz)`, created)
	}
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, state, finished) values ('recent', 'ep_1', 'done', now())`)
	settleHorizon(t, db, env)

	if diff := cmp.Diff(Pruned{PrunedOutbox: 2, PrunedDeliveries: 4, PrunedAttempts: 4, PrunedReplays: 2}, p.run(t)); diff != "" {
		t.Errorf("deleted (-want +got):\n%s", diff)
	}
	want := []string{"attempt orphan_pending/ep_1", "attempt partly/ep_1", "attempt partly/ep_2", "attempt pending/ep_1", "attempt young/ep_1",
		"delivery log -infinity/ep_1", "delivery log infinity/ep_1", "delivery orphan_pending/ep_1", "delivery partly/ep_1", "delivery partly/ep_2",
		"delivery pending/ep_1", "delivery young/ep_1", "event -infinity", "event infinity", "event partly", "event pending", "event young", "replay recent"}
	if diff := cmp.Diff(want, kept(t, env)); diff != "" {
		t.Errorf("what is left (-want +got):\n%s", diff)
	}
}

func TestPruner_KeepsWhatAnOpenReplayMaySend(t *testing.T) {
	t.Parallel()
	for name, replay := range map[string]string{
		"range": `insert into webhooks.replays (id, endpoint_id, state, since, until)
		    values ('r', 'ep_1', 'running', now() - interval '32 days', now() - interval '30 days')`,
		"all":     `insert into webhooks.replays (id, endpoint_id) values ('r', 'ep_1')`,
		"named":   `insert into webhooks.replays (id, endpoint_id, event_ids) values ('r', 'ep_1', '{evt,orphan}')`,
		"carried": `insert into webhooks.replays (id, endpoint_id, event_ids, state) values ('r', 'ep_1', '{}', 'running')`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			p := newPruning(t, db, env)
			addOld(t, env, "evt", 31, Failed)
			addOldLog(t, env, "orphan", 31, Failed)
			addOldLog(t, env, "other", 40, Failed, Failed) // ep_2 is not replayed
			env.Exec(t, `delete from webhooks.deliveries where event_id = 'other' and endpoint_id = 'ep_1'`)
			env.Exec(t, replay)
			if name == "carried" {
				env.Exec(t, `update webhooks.deliveries set replay_id = 'r' where event_id in ('evt', 'orphan')`)
			}
			settleHorizon(t, db, env)
			if got := p.run(t); got[PrunedOutbox] != 0 || got[PrunedDeliveries] != 1 {
				t.Errorf("deleted %v while the replay was open", got)
			}
			env.Exec(t, `update webhooks.replays set state = 'done', finished = now() from `+agentEnds)
			p.again()
			if got := p.run(t); got[PrunedOutbox] != 1 || got[PrunedDeliveries] != 2 || got[PrunedReplays] != 0 {
				t.Errorf("deleted %v when it had ended", got)
			}
		})
	}
}

func TestPruner_DeletesNothingThatMayNotHaveBeenHandedOver(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]string{
		"no horizon":           `update webhooks.checkpoint set horizon = null`,
		"an earlier horizon":   `update webhooks.checkpoint set horizon = '3:3:'`,
		"a recovery under way": `update webhooks.checkpoint set recovering = true`,
		"another leader":       `update webhooks.checkpoint set epoch = epoch + 1`,
		"other tables":         `update webhooks.checkpoint set relations = '{1:1}'`,
		"a former version":     `update webhooks.checkpoint set relations = null`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			p := newPruning(t, db, env)
			addOld(t, env, "evt", 31, Succeeded)
			settleHorizon(t, db, env)
			env.Exec(t, prepare)
			if got := p.run(t); got[PrunedOutbox] != 0 || got[PrunedDeliveries] != 0 {
				t.Errorf("deleted %v", got)
			}
			settleHorizon(t, db, env)
			env.Exec(t, `update webhooks.checkpoint set recovering = false, epoch = $1`, p.term.Epoch)
			p.again()
			if got := p.run(t); got[PrunedOutbox] != 1 || got[PrunedDeliveries] != 1 {
				t.Errorf("deleted %v when nothing was in the way", got)
			}
		})
	}
}

func TestPruner_KeepsARowWhoseTransactionTheHorizonDoesNotSee(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	p := newPruning(t, db, env)
	addOld(t, env, "seen", 31, Succeeded)
	settleHorizon(t, db, env)
	addOld(t, env, "unseen", 31, Succeeded)
	addOldLog(t, env, "unseen_log", 31, Succeeded) // the event may be one that is not visible yet
	p.run(t)
	if got := kept(t, env); slices.Contains(got, "event seen") || !slices.Contains(got, "event unseen") || !slices.Contains(got, "delivery unseen_log/ep_1") {
		t.Errorf("left is %q", got)
	}
}

// Ids of transactions go round every 2^32, and a row may be older than half of that.
func TestPruner_KnowsARowThatIsOlderThanHalfARoundOfTransactions(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	for _, test := range []struct {
		xmin         string
		horizon, now int64
		want         bool
	}{
		{"999", 1000, 1005, true},
		{"1000", 1000, 1005, false},
		{"1004", 1000, 1005, false},
		{"1005", 1000, 1005, true}, // of the round before
		{"3000000000", 1000, 1005, true},
		{"4294967295", 4294967290, 4294967300, false},
		{"3", 4294967290, 4294967300, false},
		{"4", 4294967290, 4294967300, true},
		{"100", 12884901990, 12884901995, true},
		{"102", 12884901990, 12884901995, false},
	} {
		got := testenv.QueryOne[bool](t, env, `select `+hasPassed("r")+` from (select $1::text::xid as xmin) r, (select $2::bigint as horizon, $3::bigint as now) passed`,
			test.xmin, test.horizon, test.now)
		if got != test.want {
			t.Errorf("xmin %s, horizon %d, now %d: %t", test.xmin, test.horizon, test.now, got)
		}
	}
}

// All events of one transaction have the same created, so a walk cannot go on by that alone.
func TestPruner_ReadsNothingTwiceAlsoWithinOneTransactionsEvents(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	p := newPruning(t, db, env)
	const events, stay = pruneRead + 2500, 1500
	env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created)
	    select 'evt_' || lpad(i::text, 6, '0'), 'lead.created', 'venue_a', '{}', '2020-01-01' from generate_series(1, $1) i`, events)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created)
	    select id, 'ep_1', venue, type, case when id <= 'evt_' || lpad($1::int::text, 6, '0') then 'pending' else 'succeeded' end, created from webhooks.outbox`, stay)
	settleHorizon(t, db, env)

	must(t, p.Begin(t.Context()))
	for _, test := range []struct {
		table PrunedTable
		steps int // one for each batch listed, and one that finds no more
	}{
		{PrunedOutbox, events/pruneBatch + 1 + 1},
		{PrunedDeliveries, (events-stay)/pruneBatch + 1},
	} {
		pruned, steps, err := p.table(t, test.table)
		if must(t, err); pruned[test.table] != events-stay || steps != test.steps {
			t.Errorf("%s: %d rows in %d steps, want %d in %d", test.table, pruned[test.table], steps, events-stay, test.steps)
		}
	}
	must(t, p.Begin(t.Context()))
	for _, table := range []PrunedTable{PrunedOutbox, PrunedDeliveries} {
		if _, steps, err := p.table(t, table); err != nil || steps != 1 {
			t.Errorf("%s: the next run makes %d steps (%v), want one: what had to stay is not to be read again", table, steps, err)
		}
	}
	env.Exec(t, `update webhooks.deliveries set status = 'failed'`)
	settleHorizon(t, db, env)
	p.again()
	if got := p.run(t); got[PrunedOutbox] != stay || got[PrunedDeliveries] != stay {
		t.Errorf("deleted %v when the walks began anew, want %d", got, stay)
	}
}

func TestPruner_LeavesWhatBecamePendingMeanwhile(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	p := newPruning(t, db, env)
	addOld(t, env, "evt", 31, Failed)
	addOldLog(t, env, "orphan", 31, Failed)
	settleHorizon(t, db, env)
	must(t, p.Begin(t.Context()))
	mapping, err := p.slot.mapping(t.Context())
	must(t, err)
	for table, list := range map[PrunedTable]string{
		PrunedOutbox: mapping.listEventsSQL(), PrunedDeliveries: strings.Replace(listDeliveries, "o.status <> 'pending'", "true", 1),
	} {
		listed, err := p.list(t.Context(), list, beginning)
		must(t, err)
		p.walks[table].listed = listed
	}
	// In place, so that the listed places are those of pending rows now.
	env.Exec(t, `update webhooks.deliveries set status = 'pending'`)
	env.Exec(t, `vacuum full webhooks.deliveries`)
	settleHorizon(t, db, env)
	if got := p.run(t); got[PrunedOutbox]+got[PrunedDeliveries]+got[PrunedAttempts] != 0 {
		t.Errorf("deleted %v, all of which is pending", got)
	}
}

func TestPruner_DoesNotWaitForTheLedger(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	p := newPruning(t, db, env)
	addOldLog(t, env, "held", 31, Failed)
	addOldLog(t, env, "free", 31, Failed)
	settleHorizon(t, db, env)
	tx := begin(t, env)
	_, err := tx.Exec(t.Context(), `update webhooks.deliveries set status = 'pending' where event_id = 'held'`)
	must(t, err)
	began := time.Now()
	if got := p.run(t); got[PrunedDeliveries] != 1 || time.Since(began) > 5*time.Second {
		t.Errorf("deleted %v in %s, want the one that the ledger does not hold, at once", got, time.Since(began))
	}
	must(t, tx.Commit(t.Context()))
	if got := kept(t, env); !slices.Equal(got, []string{"attempt held/ep_1", "delivery held/ep_1"}) {
		t.Errorf("left is %q", got)
	}
}

// Whenever a comparison comes, after whichever step, it must find nothing to send again.
func TestPruner_NeverHasAComparisonMakeADeliveryAnew(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	db.cfg.Retention = 30 * 24 * time.Hour
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	env.Exec(t, `update webhooks.endpoints set created = '2020-01-01'`)
	c := compare(t, db, env)
	for i := range 3 {
		addOld(t, env, fmt.Sprintf("evt_%d", i), 31, Succeeded)
	}
	c.runSettled(t, true)
	p := db.configured().NewPruner(c.cfg.Term)
	must(t, p.Begin(t.Context()))
	p.batch = 1
	deleted := int64(0)
	for _, table := range []PrunedTable{PrunedDeliveries, PrunedOutbox, PrunedDeliveries} {
		p.walks[table] = &walk{after: beginning}
		for done := false; !done; {
			var pruned Pruned
			var err error
			pruned, done, err = p.Step(t.Context(), table)
			must(t, err)
			deleted += pruned[table]
			env.Exec(t, `update webhooks.checkpoint set horizon = null`) // as on a new server: all of the outbox is compared
			if n := c.run(t, true); n != 0 {
				t.Fatalf("after a step for %s a comparison made %d deliveries", table, n)
			}
			c.runSettled(t, true)
		}
	}
	if deleted != 6 {
		t.Errorf("%d rows were deleted, want 6", deleted)
	}
}

// A time without zone is as old as it is where it was written.
func TestPruner_ReadsTimesWithoutZoneInTheDatabasesZone(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	env.Exec(t, `create table events (id text primary key, type text, venue text, data json, created timestamp)`)
	env.Exec(t, `create index on events (created)`)
	cfg := testConfig(env.URL, env.Slot)
	cfg.Table, cfg.TimeZone = "public.events", "Pacific/Honolulu" // ten hours behind UTC
	db, err := Open(t.Context(), cfg)
	must(t, err)
	t.Cleanup(db.Close)
	p := newPruning(t, db, env)
	env.Exec(t, `insert into events (id, created) select hours::text, (now() - interval '30 days' + hours * interval '1 hour') at time zone 'Pacific/Honolulu' from generate_series(-3, 3, 2) hours`)
	settleHorizon(t, db, env)
	p.run(t)
	if left := testenv.QueryAll[string](t, env, `select id from events order by id`); !slices.Equal(left, []string{"1", "3"}) {
		t.Errorf("left are the events of hours %q, want those that are younger than 30 days", left)
	}
}

func TestPruner_PrunesOutboxesOfAnyShape(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, table, old, young string }{
		{"uuid and timestamp", `create table events (id uuid primary key default gen_random_uuid(), type text, venue text, data json, created timestamp)`,
			`insert into events (created) select now() - interval '31 days'`, `insert into events (created) values (now()), (null), ('infinity'), ('-infinity')`},
		{"bigint and date", `create table events (id bigint primary key generated always as identity, type text, venue text, data json, created date)`,
			`insert into events (created) select now() - interval '32 days'`, `insert into events (created) values (now()), (null), ('infinity'), ('-infinity')`},
		{"numeric", `create table events (id numeric primary key default random(), type text, venue text, data json, created timestamptz)`,
			`insert into events (created) select now() - interval '31 days'`, `insert into events (created) values (now()), (null)`},
		{"varchar", `create table events (id varchar(20) primary key default left(md5(random()::text), 20), type text, venue text, data json, created timestamptz)`,
			`insert into events (created) select now() - interval '31 days'`, `insert into events (created) values (now()), (null)`},
		{"partitions", `create table events (id text default gen_random_uuid()::text, type text, venue text, data json, created timestamptz,
		        part int default random() * 3, primary key (id, part)) partition by list (part);
		    create table part_0 partition of events for values in (0, 1);
		    create table part_2 partition of events for values in (2); create table part_3 partition of events default`,
			`insert into events (created) select now() - interval '31 days'`, `insert into events (created) values (now()), (null), ('infinity'), ('-infinity')`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			env := testenv.NewDB(t)
			for statement := range strings.SplitSeq(test.table, ";") {
				env.Exec(t, statement)
			}
			env.Exec(t, `create index on events (created)`)
			cfg := testConfig(env.URL, env.Slot)
			cfg.Table = "public.events"
			db, err := Open(t.Context(), cfg)
			must(t, err)
			t.Cleanup(db.Close)
			p := newPruning(t, db, env)
			env.Exec(t, test.old+` from generate_series(1, 40)`)
			young := env.Exec(t, test.young)
			env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created)
			    select id::text, 'ep_1', '', '', 'failed', now() - interval '31 days' from events`)
			addOldLog(t, env, "evt_of_a_former_outbox", 31, Failed)
			addOldLog(t, env, "99999999999999999999999", 31, Failed)
			settleHorizon(t, db, env)
			want := Pruned{PrunedOutbox: 40, PrunedDeliveries: 42, PrunedAttempts: 2, PrunedReplays: 0}
			if diff := cmp.Diff(want, p.run(t)); diff != "" {
				t.Errorf("deleted (-want +got):\n%s", diff)
			}
			if left := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.deliveries`); left != young {
				t.Errorf("%d deliveries are left, want those of the %d events that stay", left, young)
			}
		})
	}
}

func TestPruner_LeavesAPartitionAloneThatTheHorizonDoesNotKnow(t *testing.T) {
	t.Parallel()
	db, env := openPartitioned(t)
	env.Exec(t, `create index on events (created)`)
	p := newPruning(t, db, env)
	env.Exec(t, `create table part_3 (like events including all)`)
	for part, table := range map[int]string{1: "events", 3: "part_3"} {
		env.Exec(t, fmt.Sprintf(`insert into %s (id, type, venue, data, created, part) values ('evt_%d', 'x', 'venue_a', '{}', '2020-01-01', %d)`, table, part, part))
	}
	settleHorizon(t, db, env)
	env.Exec(t, `alter table events attach partition part_3 for values in (3)`) // the stream never brings what it holds
	if got := p.run(t); got[PrunedOutbox] != 1 {
		t.Errorf("deleted %v, want the event of the partition that was there", got)
	}
	settleHorizon(t, db, env)
	p.again()
	if got := p.run(t); got[PrunedOutbox] != 1 {
		t.Errorf("deleted %v, want the other event too once it was compared", got)
	}
}

func TestPruner_SaysWhatKeepsTheOutboxAndGoesOnWithTheLog(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		sql  []string
		want []string
	}{
		{"foreign key", []string{`create table notes (event text references webhooks.outbox (id))`, `insert into notes values ('evt')`},
			[]string{"outbox webhooks.outbox: it cannot be pruned: update or delete on table", "ON DELETE CASCADE"}},
		{"trigger that raises", []string{`create function refuse() returns trigger language plpgsql as 'begin raise exception ''append only''; end'`,
			`create trigger refuse before delete on webhooks.outbox for each row execute function refuse()`}, []string{"it cannot be pruned: append only", "retention"}},
		{"trigger that skips", []string{`create function refuse() returns trigger language plpgsql as 'begin return null; end'`,
			`create trigger refuse before delete on webhooks.outbox for each row execute function refuse()`}, []string{"it cannot be pruned: a trigger or a rule"}},
		{"no identity", []string{`alter table webhooks.outbox drop constraint outbox_pkey`, `create publication other for table webhooks.outbox`},
			[]string{"it is not pruned: publication other publishes deletes", "ALTER TABLE webhooks.outbox REPLICA IDENTITY FULL"}},
		{"no privilege", []string{`revoke delete on webhooks.outbox from current_user`}, []string{"it is not pruned: role", "lacks DELETE; GRANT DELETE ON"}},
		{"no index", []string{`drop index webhooks.outbox_created`}, []string{`no index begins with column "created"; CREATE INDEX ON "webhooks"."outbox" ("created")`}},
		{"partial index", []string{`drop index webhooks.outbox_created`, `create index on webhooks.outbox (created) where type = 'x'`}, []string{`no index begins with`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			p := newPruning(t, db, env)
			addOld(t, env, "evt", 31, Failed)
			addOldLog(t, env, "orphan", 31, Failed)
			for _, sql := range test.sql {
				env.Exec(t, sql)
			}
			settleHorizon(t, db, env)
			must(t, p.Begin(t.Context()))
			_, _, err := p.table(t, PrunedOutbox)
			wantProblem(t, err, test.want...)
			pruned, _, err := p.table(t, PrunedDeliveries)
			if must(t, err); pruned[PrunedDeliveries] != 1 {
				t.Errorf("of the log %v was deleted, want the delivery whose event is gone", pruned)
			}
			if got := kept(t, env); !slices.Equal(got, []string{"attempt evt/ep_1", "delivery evt/ep_1", "event evt"}) {
				t.Errorf("left is %q", got)
			}
		})
	}
}

func TestPruner_TakesFewerRowsAfterATransactionThatTookTooLong(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	p := newPruning(t, db, env)
	env.Exec(t, `create function slow() returns trigger language plpgsql
	    as 'begin if current_setting(''statement_timeout'') = ''10s'' then raise query_canceled; end if; return old; end'`)
	env.Exec(t, `create trigger slow before delete on webhooks.outbox for each row execute function slow()`)
	addOld(t, env, "evt", 31)
	settleHorizon(t, db, env)
	must(t, p.Begin(t.Context()))
	_, _, err := p.table(t, PrunedOutbox)
	if SQLState(err) != codeQueryCanceled || p.batch != pruneBatch/2 {
		t.Errorf("%v, then %d rows at a time", err, p.batch)
	}
}

func TestCheck_WarnsOfWhatWillNotBePruned(t *testing.T) {
	t.Parallel()
	db, env := openDB(t)
	lines := func() string { return strings.Join(notOK(db.Check(t.Context())), "\n") }
	env.Exec(t, `revoke delete on webhooks.outbox, webhooks.replays from current_user`)
	env.Exec(t, `drop index webhooks.outbox_created`)
	if said := lines(); said != "" {
		t.Errorf("without retention:\n%s", said)
	}
	db.cfg.Retention = 30 * 24 * time.Hour
	said := lines()
	for _, want := range []string{
		`warn retention of webhooks.outbox: it is not pruned: role agent lacks DELETE | GRANT DELETE ON "webhooks"."outbox" TO "agent"`,
		`warn retention of webhooks.outbox: it is not pruned: no index begins with column "created" | CREATE INDEX`,
		`warn retention of webhooks.replays: it is not pruned: role agent lacks DELETE | GRANT DELETE ON webhooks.replays TO "agent"`,
	} {
		if !strings.Contains(said, want) {
			t.Errorf("no finding says %q; findings:\n%s", want, said)
		}
	}
	env.Exec(t, `grant delete on webhooks.outbox, webhooks.replays to current_user`)
	env.Exec(t, `create index on webhooks.outbox (created)`)
	if said := lines(); said != "" {
		t.Errorf("when all is well:\n%s", said)
	}
}

func TestMigrate_HasTheLargeTablesVacuumedOften(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	got := testenv.QueryAll[string](t, env, `select relname::text from pg_class
	    where relnamespace = 'webhooks'::regnamespace and 'autovacuum_vacuum_scale_factor=0.01' = any(reloptions) order by 1`)
	if want := []string{"attempts", "deliveries", "outbox"}; !slices.Equal(got, want) {
		t.Errorf("these tables are: %q, want %q", got, want)
	}
}
