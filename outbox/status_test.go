package outbox

import (
	"testing"
	"time"
)

func TestOverview_OfANewDatabaseIsEmpty(t *testing.T) {
	db, _ := openDB(t)
	o, err := db.Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if o.Leader != nil || o.Slot != nil || o.Deliveries != (DeliveryCounts{}) || o.Endpoints != (EndpointCounts{}) || len(o.NotSending) != 0 {
		t.Errorf("not empty: %+v", o)
	}
}

func TestOverview_TellsLeaderSlotAndCounts(t *testing.T) {
	db, env := openDB(t)
	env.Exec(t, `select pg_create_logical_replication_slot($1, 'pgoutput')`, env.Slot)
	env.Exec(t, `insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database)
	    values ($1, '0/16B3748', 3, 'host-1', '1', 1, current_database())`, env.Slot)
	addEndpoint(t, env, "ep_1", "venue_a", "*")
	addEndpoint(t, env, "ep_2", "venue_a", "*")
	addEndpoint(t, env, "ep_3", "venue_a", "*")
	env.Exec(t, `update webhooks.endpoints set disabled_at = now(), disabled_reason = 'gone' where id = 'ep_2'`)
	env.Exec(t, `insert into webhooks.endpoint_health (endpoint_id, generation, consecutive_failures, unusable) values ('ep_3', 1, 0, 'no')`)
	addDelivery(t, env, "evt_1", "ep_1", "venue_a", "lead.created", Pending, 600) // pending counts however old it is
	addDelivery(t, env, "evt_2", "ep_1", "venue_a", "lead.created", Pending, 5)
	addDelivery(t, env, "evt_3", "ep_1", "venue_a", "lead.created", Failed, 5)
	addDelivery(t, env, "evt_4", "ep_1", "venue_a", "lead.created", Failed, 600)
	addDelivery(t, env, "evt_5", "ep_1", "venue_a", "lead.created", Missed, 5)
	addDelivery(t, env, "evt_6", "ep_1", "venue_a", "lead.created", Succeeded, 5)

	o, err := db.Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if l := o.Leader; l == nil || l.Holder != "host-1" || l.Epoch != 3 || l.LSN != "0/16B3748" {
		t.Errorf("leader: %+v", l)
	}
	if s := o.Slot; s == nil || s.Name != env.Slot || s.Active || s.WALStatus != "reserved" || s.LagBytes <= 0 || s.ConfirmedLSN == "" {
		t.Errorf("slot: %+v", s)
	}
	d := o.Deliveries
	if d.Pending != 2 || d.Failed != 1 || d.Missed != 1 || d.Succeeded != 1 || d.Capped {
		t.Errorf("deliveries: %+v", d)
	}
	if d.OldestPending == nil || time.Since(*d.OldestPending) < 9*time.Hour {
		t.Errorf("the oldest pending delivery is from %v, want ten hours ago", d.OldestPending)
	}
	if o.Endpoints != (EndpointCounts{Enabled: 1, Disabled: 1, Unusable: 1}) {
		t.Errorf("endpoints: %+v", o.Endpoints)
	}
	if len(o.NotSending) != 2 {
		t.Errorf("not sending: %+v, want ep_2 and ep_3", o.NotSending)
	}
}
