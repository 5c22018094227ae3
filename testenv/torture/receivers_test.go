package main

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"
)

// send sends an event to an endpoint of the receivers as the agent would, and returns the status of
// the answer.
func send(t *testing.T, c *customers, endpoint, secret, event, body string) (int, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+c.address()+"/"+endpoint, bytes.NewBufferString(body))
	if err != nil {
		t.Fatal(err)
	}
	now := strconv.FormatInt(time.Now().Unix(), 10)
	sign := func(text string) []byte {
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(text))
		return mac.Sum(nil)
	}
	req.Header.Set("User-Agent", "QuintaGo-Webhooks/a.7")
	req.Header.Set("X-Quintago-Signature", "sha256="+hex.EncodeToString(sign(body)))
	req.Header.Set("Webhook-Id", event)
	req.Header.Set("Webhook-Timestamp", now)
	req.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(sign(event+"."+now+"."+body)))
	client := &http.Client{Timeout: 1500 * time.Millisecond}
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	return res.StatusCode, res.Body.Close()
}

// startTestCustomers starts receivers with an endpoint of each behavior, which has its name. It
// returns a function that reads their files.
func startTestCustomers(t *testing.T, secret string) (c *customers, files func() ([]request, []answer)) {
	t.Helper()
	dir := t.TempDir()
	requests, err := openJournal[request](dir, requestsFile)
	answers, err2 := openJournal[answer](dir, answersFile)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if c, err = startCustomers(stopwatch{time.Now()}, 1, requests, answers); err != nil {
		t.Fatal(err)
	}
	var endpoints []*endpointInfo
	for _, b := range []behavior{healthy, slow, flaky, resetting, hung} {
		endpoints = append(endpoints, &endpointInfo{ID: string(b), Behavior: b, secret: secret})
	}
	c.serve(endpoints)
	return c, func() ([]request, []answer) {
		if err := errors.Join(c.close(), requests.close(), answers.close()); err != nil {
			t.Fatal(err)
		}
		got, err := load[request](dir, requestsFile)
		given, err2 := load[answer](dir, answersFile)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(given, func(x, y answer) int { return cmp.Compare(x.N, y.N) })
		return got, given
	}
}

func TestReceivers_WriteDownWhatArrivesAndWhatTheyAnswer(t *testing.T) {
	c, files := startTestCustomers(t, "secret")
	for range 2 {
		if status, err := send(t, c, "healthy", "secret", "evt_1", `{"a":1}`); status != 200 || err != nil {
			t.Fatalf("a healthy server answered %d, %v", status, err)
		}
	}
	if _, err := send(t, c, "healthy", "other", "evt_2", `{}`); err != nil {
		t.Fatal(err)
	}
	if status, err := send(t, c, "nobody", "secret", "evt_1", `{"a":1}`); status != 404 || err != nil {
		t.Errorf("an endpoint that there is not answered %d, %v", status, err)
	}
	requests, answers := files()
	if len(requests) != 4 || len(answers) != 4 {
		t.Fatalf("%d requests and %d answers are in the files, want 4 each", len(requests), len(answers))
	}
	first, second, forged := requests[0], requests[1], requests[2]
	hash := sha256.Sum256([]byte(`{"a":1}`))
	if first.Endpoint != "healthy" || first.Event != "evt_1" || first.Agent != "a.7" || first.Hash != hex.EncodeToString(hash[:]) ||
		first.Body != `{"a":1}` || first.Quintago != "" || first.Standard != "" || first.Ahead.Abs() > time.Minute {
		t.Errorf("the request is in the file as %+v", first)
	}
	if second.Body != "" || second.Hash != first.Hash {
		t.Errorf("the same body again is in the file as %q, hash %s", second.Body, second.Hash)
	}
	if forged.Quintago == "" || forged.Standard == "" {
		t.Errorf("signatures with another secret are in the file as valid: %+v", forged)
	}
	if answers[0].Status != 200 || answers[0].N != first.N || answers[0].At < first.At {
		t.Errorf("the answer is in the file as %+v", answers[0])
	}
}

func TestReceivers_BehaveAsTheyShould(t *testing.T) {
	c, files := startTestCustomers(t, "secret")
	begun := time.Now()
	if status, err := send(t, c, "slow", "secret", "evt_1", "{}"); status != 200 || err != nil || time.Since(begun) < 300*time.Millisecond {
		t.Errorf("the slow one answered %d, %v after %s", status, err, time.Since(begun))
	}
	if status, err := send(t, c, "resetting", "secret", "evt_1", "{}"); err == nil {
		t.Errorf("the resetting one answered %d", status)
	}
	if status, err := send(t, c, "hung", "secret", "evt_1", "{}"); err == nil {
		t.Errorf("the hung one answered %d", status)
	}
	statuses := map[int]int{}
	for i := range 100 {
		status, err := send(t, c, "flaky", "secret", fmt.Sprintf("evt_%d", i), "{}")
		if err != nil {
			t.Fatal(err)
		}
		statuses[status]++
	}
	if statuses[500] < 8 || statuses[500] > 35 || statuses[200]+statuses[500] != 100 {
		t.Errorf("the flaky one answered %v, want 500 one time in five", statuses)
	}
	c.mend()
	if status, err := send(t, c, "resetting", "secret", "evt_1", "{}"); status != 200 || err != nil {
		t.Errorf("the resetting one, mended, answered %d, %v", status, err)
	}
	requests, answers := files()
	if len(requests) != 104 || len(answers) != 104 {
		t.Errorf("%d requests and %d answers are in the files, want 104 each", len(requests), len(answers))
	}
}
