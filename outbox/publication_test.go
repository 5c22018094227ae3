package outbox

import (
	"cmp"
	"errors"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// TestPublications_WhatSomebodyElseMakesAtTheSameMomentIsAsGoodAsOnesOwn holds a transaction that
// makes what is missing, and commits while migrate or the agent waits to make it as well.
func TestPublications_WhatSomebodyElseMakesAtTheSameMomentIsAsGoodAsOnesOwn(t *testing.T) {
	t.Parallel()
	const (
		remove = `alter publication webhooks_outbox drop table webhooks.replays`
		add    = `alter publication webhooks_outbox add table webhooks.replays`
		drop   = `drop publication webhooks_outbox_endpoints`
	)
	migrate := func(db *DB) error { _, _, err := Migrate(t.Context(), db.cfg); return err }
	mend := func(db *DB) error { _, err := db.MendPublications(t.Context()); return err }
	for name, tt := range map[string]struct {
		damage, repair string
		do             func(*DB) error
	}{
		"a publication that migrate makes":      {drop, "", migrate},
		"a publication that an agent makes":     {drop, "", mend},
		"a table that an agent adds to another": {remove, add, mend},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, env := openDB(t)
			env.Exec(t, tt.damage)
			tx := begin(t, env)
			must(t, exec(t.Context(), tx, cmp.Or(tt.repair, db.cfg.publications()[1].create())))
			done := make(chan error, 1)
			go func() { done <- tt.do(db) }()
			testenv.Eventually(t, patience, func() error {
				if !testenv.QueryOne[bool](t, env, `select exists (select from pg_stat_activity
					where datname = current_database() and wait_event_type = 'Lock' and query ~* '(create|alter) publication')`) {
					return errors.New("nobody waits for the other session")
				}
				return nil
			})
			must(t, tx.Commit(t.Context()))
			must(t, <-done)
			must(t, db.Published(t.Context()))
		})
	}
}
