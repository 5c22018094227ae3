package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/testenv"
)

// outboxStandIn is the part of the agent's schema that the app uses. In the demo the agent's binary
// makes the real one.
const outboxStandIn = `
create schema webhooks;
create table webhooks.outbox (
	id text primary key default 'evt_' || gen_random_uuid(), type text not null, venue text not null, data json not null
);
create table webhooks.endpoints (id text);
`

func TestApp_WritesEventsInTheTransactionOfTheBusinessChange(t *testing.T) {
	out := newPrinter(io.Discard, false)
	s, err := startServer(t.Context(), out)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(testenv.ExecSQL(t.Context(), s.agentURL(), outboxStandIn), s.grantToApp(t.Context())); err != nil {
		t.Fatal(err)
	}
	tally := newTally()
	app, err := openApp(t.Context(), s, makeVenues(), tally, out)
	if err != nil {
		t.Fatal(err)
	}
	defer app.close()
	if err := app.playLeads(t.Context(), 3, 0); err != nil {
		t.Fatal(err)
	}

	conn, err := pgx.Connect(t.Context(), s.cluster.URL(databaseName))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	count := func(table string) (n int) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), "select count(*) from "+table).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	got := tally.summary().counts
	const leads = 5 * 3
	if n := count("webhooks.outbox"); n != got.committed || n != leads*6 {
		t.Errorf("%d events in the outbox, %d counted as committed, want %d", n, got.committed, leads*6)
	}
	if total := got.committed + got.rolledBack; got.rolledBack != total/rollBackEvery || got.rolledBack == 0 {
		t.Errorf("%d of %d transactions rolled back", got.rolledBack, total)
	}
	for _, table := range []string{"crm.leads", "crm.proposals", "crm.payments"} {
		if n := count(table); n != leads {
			t.Errorf("%s has %d rows, want %d", table, n, leads)
		}
	}
	rows, err := conn.Query(t.Context(), "select id, data::text from webhooks.outbox")
	if err != nil {
		t.Fatal(err)
	}
	var id, data string
	if _, err := pgx.ForEachRow(rows, []any{&id, &data}, func() error {
		if e := tally.events[id]; e == nil || e.rolledBack || e.data != data || !json.Valid([]byte(data)) {
			t.Errorf("event %s holds %s, the tally knows %+v", id, data, e)
		}
		if strings.Contains(data, `\u`) {
			t.Errorf("%s is escaped, which producers other than Go do not do", data)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
