package main

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHistory_ComesBackFromItsFilesAsItWas(t *testing.T) {
	dir := t.TempDir()
	want := soundHistory().history
	err := errors.Join(
		save(dir, runFile, []runInfo{want.Run}), save(dir, endpointsFile, want.Endpoints), save(dir, writesFile, want.Writes),
		save(dir, endingsFile, want.Endings), save(dir, requestsFile, want.Requests), save(dir, answersFile, want.Answers),
		save(dir, faultsFile, want.Faults), save(dir, agentsFile, want.Agents), save(dir, operationsFile, want.Operations),
		save(dir, resourcesFile, want.Resources), save(dir, unseenFile, want.Unseen), save(dir, outboxFile, want.Outbox), save(dir, deliveriesFile, want.Deliveries),
		save(dir, attemptsFile, want.Attempts), save(dir, rowsFile, want.Rows), save(dir, replaysFile, want.Replays),
		save(dir, rewrittenFile, want.Rewritten),
	)
	if err != nil {
		t.Fatal(err)
	}
	got, err := loadHistory(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(endpointInfo{})); diff != "" {
		t.Error(diff)
	}
}

func TestHistory_IsNotReadWhenAFileIsMissing(t *testing.T) {
	dir := t.TempDir()
	if err := save(dir, runFile, []runInfo{{Seed: 1}}); err != nil {
		t.Fatal(err)
	}
	if _, err := loadHistory(dir); err == nil {
		t.Error("a run without its files was read")
	}
}
