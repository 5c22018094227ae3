package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/quintago/webhook-agent/testenv"
)

func TestQuantile_IsTheSmallestValueThatEnoughDoNotExceed(t *testing.T) {
	var values []time.Duration
	for i := range 1000 {
		values = append(values, time.Duration(i+1))
	}
	for q, want := range map[float64]time.Duration{0.5: 501, 0.99: 991, 0.999: 1000, 1: 1000} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile %v of 1 to 1000 is %d, want %d", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("quantile of nothing is %d", got)
	}
}

func TestMedian_IsTheMiddle(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 3}, {[]float64{7}, 7}} {
		if got := median(test.values); got != test.want {
			t.Errorf("median of %v is %v, want %v", test.values, got, test.want)
		}
	}
}

func TestLatencies_PairArrivalsWithCommits(t *testing.T) {
	commit := time.Unix(1000, 0)
	d := delivered{
		written:  written{commits: map[string]time.Time{"a": commit, "b": commit}},
		arrivals: []arrival{{"a", commit.Add(3 * time.Millisecond)}, {"b", commit.Add(-time.Millisecond)}, {"a", commit.Add(time.Millisecond)}, {"of the warm-up", commit}},
	}
	got := d.latencies()
	if len(got) != 3 || got[0] != -time.Millisecond || got[2] != 3*time.Millisecond {
		t.Errorf("latencies %v, want -1 ms, 1 ms and 3 ms", got)
	}
}

// The floor must send what the agent sends. Otherwise the comparison means nothing.
func TestFloor_SignsAsTheAgentDoes(t *testing.T) {
	r := testenv.StartReceiver(t, secret)
	for _, client := range []bool{false, true} {
		send, err := sender(floorTask{URLs: []string{r.URL}, Concurrency: 1, Client: client})
		if err != nil {
			t.Fatal(err)
		}
		if err := send(0, "evt_1", envelope("evt_1", "venue_1")); err != nil {
			t.Fatal(err)
		}
	}
	got := r.Received()
	if len(got) != 2 {
		t.Fatalf("%d requests", len(got))
	}
	for _, got := range got {
		if got.SignatureErr != nil || got.ID != "evt_1" {
			t.Errorf("%q arrived with %v", got.ID, got.SignatureErr)
		}
	}
}

func TestReport_TellsWhetherAGoalIsReached(t *testing.T) {
	r := &report{head: "head"}
	r.add(row{scenario: "fast", goal: "at least 1", reached: true})
	r.add(row{scenario: "slow", goal: "at least 1"})
	r.add(row{scenario: "aimless"})
	var text bytes.Buffer
	r.printMarkdown(&text)
	for scenario, verdict := range map[string]string{"fast": "| yes |", "slow": "| NO |", "aimless": "|  |"} {
		for line := range strings.Lines(text.String()) {
			if strings.Contains(line, scenario) && !strings.Contains(line, verdict) {
				t.Errorf("%q does not say %q", line, verdict)
			}
		}
	}
}

func TestRun_RefusesAWrongCommandLine(t *testing.T) {
	for _, args := range [][]string{{"-only", "("}, {"-nothing"}, {"there"}, {"-pgstream", "/bin/true"}, {"-peers", "-pgstream", "/nowhere/pgstream"}} {
		var complaint bytes.Buffer
		if status := run(t.Context(), args, &bytes.Buffer{}, &complaint); status != 2 || complaint.Len() == 0 {
			t.Errorf("%q: status %d, %q", args, status, complaint.String())
		}
	}
}

func TestReport_ComparesThePeerByMediansOverTheRounds(t *testing.T) {
	r := &report{head: "head", peer: "peer v1"}
	agents := []effort{{6000, 6 * time.Second, 3 * time.Second}, {8000, 5 * time.Second, 2 * time.Second}, {7000, 4 * time.Second, time.Second}}
	peers := []effort{{2000, 20 * time.Second, 8 * time.Second}, {4000, 10 * time.Second, 4 * time.Second}, {2500, 10 * time.Second, 2 * time.Second}}
	r.compare(match{name: "one", cost: true}, agents, peers)
	r.compare(match{name: "many"}, agents, peers)
	var text bytes.Buffer
	r.printMarkdown(&text)
	want := `
head

|  | agent | peer v1 | ratio |
|---|---|---|---|
| one | 7000/s | 2500/s | 2.80 |
| processor time of the system for 100,000 deliveries | 5.0 s | 10.0 s | 0.40 |
| of PostgreSQL, with the app's INSERTs | 2.0 s | 4.0 s | 0.50 |
| of both | 7.0 s | 14.0 s | 0.42 |
| many | 7000/s | 2500/s | 2.80 |
`
	if text.String() != want {
		t.Errorf("got\n%s\nwant\n%s", text.String(), want)
	}
}

// Without a network, the bench measures the rest and says why it leaves the peer out.
func TestPgstream_IsLeftOutWithOneSentenceWhenItCannotBeBuilt(t *testing.T) {
	t.Setenv("GOPROXY", "off")
	t.Setenv("GOMODCACHE", t.TempDir()) // it may have been built here before
	err := installPgstream(t.Context(), t.TempDir())
	var why leftOutError
	if !errors.As(err, &why) {
		t.Fatalf("got %v, want a leftOutError", err)
	}
	for _, want := range []string{"pgstream is left out: ", pgstreamModule + "@" + pgstreamVersion, "GOPROXY=off", "-pgstream FILE"} {
		if !strings.Contains(why.Error(), want) {
			t.Errorf("%q does not say %q", why.Error(), want)
		}
	}
	if strings.Contains(why.Error(), "\n") || !strings.HasSuffix(why.Error(), ".") {
		t.Errorf("%q is not one sentence", why.Error())
	}
}

func TestComplaint_IsOneLineAndLeavesOutDownloads(t *testing.T) {
	out := "go: downloading example.org/a v1.0.0\ngo: example.org/b: 403 Forbidden\n\tserver response: no\n"
	if got, want := complaint([]byte(out), nil), "go: example.org/b: 403 Forbidden server response: no"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := complaint([]byte(strings.Repeat("\u00e9", 5000)), nil); len(got) > 410 || !utf8.ValidString(got) {
		t.Errorf("a long text becomes %d bytes, valid UTF-8: %v", len(got), utf8.ValidString(got))
	}
	if got := complaint(nil, errors.New("no go command")); got != "no go command" {
		t.Errorf("without output it is %q", got)
	}
}

func TestPgstream_IsLeftOutWhenPostgreSQLLacksItsPlugin(t *testing.T) {
	cluster, err := testenv.Start(t.Context(), testenv.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	}()
	b := &bench{cluster: cluster}
	var why leftOutError
	if err := b.lookForPlugin(t.Context(), "no_such_plugin"); !errors.As(err, &why) || !strings.Contains(why.Error(), "no_such_plugin") {
		t.Errorf("for a plugin that is not there: %v", err)
	}
	if err := b.lookForPlugin(t.Context(), "pgoutput"); err != nil {
		t.Errorf("for a plugin that is there: %v", err)
	}
}
