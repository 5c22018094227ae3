package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

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
	for _, args := range [][]string{{"-only", "("}, {"-nothing"}, {"there"}} {
		var complaint bytes.Buffer
		if status := run(t.Context(), args, &bytes.Buffer{}, &complaint); status != 2 || complaint.Len() == 0 {
			t.Errorf("%q: status %d, %q", args, status, complaint.String())
		}
	}
}
