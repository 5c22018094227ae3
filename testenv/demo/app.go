package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// rollBackEvery says that one in so many transactions of the app is rolled back.
const rollBackEvery = 10

// app plays the QuintaGo app: couples inquire at the venues, visit, get a proposal, sign and pay.
type app struct {
	conn         *pgx.Conn
	venues       []*venue
	tally        *tally
	out          *printer
	random       *mathrand.Rand
	transactions int
	couples      int
}

func openApp(ctx context.Context, s *server, venues []*venue, tally *tally, out *printer) (*app, error) {
	conn, err := pgx.Connect(ctx, s.appURL())
	if err != nil {
		return nil, fmt.Errorf("connect the app: %w", err)
	}
	// The seed is fixed, so that each run has the same story.
	random := mathrand.New(mathrand.NewPCG(2, 14))
	return &app{conn: conn, venues: venues, tally: tally, out: out, random: random}, nil
}

func (a *app) close() { _ = a.conn.Close(context.Background()) }

// playLeads plays n leads of each venue from first contact to payment. The leads are mixed, and
// there is a pause after each transaction.
func (a *app) playLeads(ctx context.Context, n int, pause time.Duration) error {
	var leads []*lead
	for range n {
		for _, v := range a.venues {
			leads = append(leads, a.newLead(v))
		}
	}
	for len(leads) > 0 {
		i := a.random.IntN(len(leads))
		if err := a.advance(ctx, leads[i]); err != nil {
			return err
		}
		if leads[i].next == len(story) {
			leads = append(leads[:i], leads[i+1:]...)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
	return nil
}

// playOn plays new leads until ctx ends.
func (a *app) playOn(ctx context.Context, pause time.Duration) error {
	for {
		if err := a.playLeads(ctx, 1, pause); err != nil {
			return err
		}
	}
}

// advance takes a lead one step further: one transaction changes business data and writes the
// event. One in ten is rolled back, and the lead stays where it was.
func (a *app) advance(ctx context.Context, l *lead) (err error) {
	step := story[l.next]
	change, args, payload := step.play(l)
	data, err := encode(payload)
	if err != nil {
		return fmt.Errorf("encode %s: %w", step.eventType, err)
	}

	tx, err := a.conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin %s: %w", step.eventType, err)
	}
	defer func() {
		if rollbackErr := tx.Rollback(context.WithoutCancel(ctx)); rollbackErr != nil && !errors.Is(rollbackErr, pgx.ErrTxClosed) {
			err = errors.Join(err, fmt.Errorf("roll back %s: %w", step.eventType, rollbackErr))
		}
	}()
	if _, err := tx.Exec(ctx, change, args...); err != nil {
		return fmt.Errorf("change the data of %s: %w", step.eventType, err)
	}
	var id string
	const insert = "insert into webhooks.outbox (type, venue, data) values ($1, $2, $3) returning id"
	if err := tx.QueryRow(ctx, insert, step.eventType, l.venue.id, data).Scan(&id); err != nil {
		return fmt.Errorf("write event %s: %w", step.eventType, err)
	}

	e := &event{venue: l.venue, eventType: step.eventType, data: data}
	a.transactions++
	if a.transactions%rollBackEvery == 0 {
		a.tally.rollingBack(id, e)
		a.out.rolledBack(e)
		return nil // the deferred function rolls back
	}
	a.tally.committing(id, e)
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit %s: %w", step.eventType, err)
	}
	l.next++
	return nil
}

// encode returns compact JSON. It leaves & unescaped, as most producers do.
func encode(payload any) (string, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(payload); err != nil {
		return "", err
	}
	return string(bytes.TrimSuffix(text.Bytes(), []byte("\n"))), nil
}

// sleep waits, unless ctx ends before.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// newID returns an id in the form that the app uses.
func newID(prefix string) string { return prefix + "_" + rand.Text() }
