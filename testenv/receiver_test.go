package testenv

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const testSecret = "a secret of a test"

// send posts a signed body as the agent does. It returns the answer and its body.
func send(t *testing.T, client *http.Client, url, id, secret, body string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	timestamp := fmt.Sprint(time.Now().Unix())
	standard := mac([]byte(secret), []byte(id+"."+timestamp+"."+body))
	req.Header.Set("X-Quintago-Signature", "sha256="+hex.EncodeToString(mac([]byte(secret), []byte(body))))
	req.Header.Set("Webhook-Id", id)
	req.Header.Set("Webhook-Timestamp", timestamp)
	req.Header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(standard))
	res, err := client.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, res.Body)
		err = errors.Join(err, res.Body.Close())
	}
	return res, err
}

// noRedirects is a client that shows redirects instead of following them.
var noRedirects = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

func TestReceiver_RecordsAndVerifiesWhatArrives(t *testing.T) {
	r := StartReceiver(t, testSecret)
	r.SetSecret("/other", "another secret")
	for _, c := range []struct{ path, id, secret string }{
		{"/first", "evt_1", testSecret},
		{"/first", "evt_1", testSecret},
		{"/first", "evt_2", "wrong"},
		{"/other", "evt_1", "another secret"},
		{"/other", "evt_2", testSecret},
	} {
		if res, err := send(t, noRedirects, r.URL+c.path, c.id, c.secret, "body of "+c.id); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("answer %v, %v", res, err)
		}
	}
	type summary struct {
		Path, ID, Body string
		Attempt        int
		Valid          bool
	}
	var got []summary
	for _, received := range r.Wait(t, 5, time.Second) {
		got = append(got, summary{received.Path, received.ID, string(received.Body), received.Attempt, received.SignatureErr == nil})
		if received.At.IsZero() || received.Header.Get("Webhook-Id") != received.ID {
			t.Errorf("time or headers of %s are missing", received.ID)
		}
	}
	want := []summary{
		{"/first", "evt_1", "body of evt_1", 1, true},
		{"/first", "evt_1", "body of evt_1", 2, true},
		{"/first", "evt_2", "body of evt_2", 1, false},
		{"/other", "evt_1", "body of evt_1", 1, true},
		{"/other", "evt_2", "body of evt_2", 1, false},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("recorded requests (-want +got):\n%s", diff)
	}
}

func TestReceiver_RefusesARequestWhereOneSchemeIsMissing(t *testing.T) {
	r := NewReceiver(testSecret)
	for _, missing := range []string{"X-Quintago-Signature", "Webhook-Signature"} {
		header := http.Header{}
		header.Set("X-Quintago-Signature", "sha256="+hex.EncodeToString(mac([]byte(testSecret), nil)))
		header.Set("Webhook-Id", "evt_1")
		header.Set("Webhook-Timestamp", "1746887520")
		header.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(mac([]byte(testSecret), []byte("evt_1.1746887520."))))
		whole := Received{ID: "evt_1", Header: header.Clone(), At: time.Unix(goldenTime, 0)}
		if r.record(&whole); whole.SignatureErr != nil {
			t.Errorf("refuses a valid request: %v", whole.SignatureErr)
		}
		header.Del(missing)
		part := Received{ID: "evt_1", Header: header, At: time.Unix(goldenTime, 0)}
		if r.record(&part); part.SignatureErr == nil {
			t.Errorf("accepts a request without %s", missing)
		}
	}
}

func TestReceiver_AnswersAsTold(t *testing.T) {
	r := StartReceiver(t, testSecret)
	r.SetAnswer("/script", Script(
		Answer{Status: 503, Header: map[string]string{"Retry-After": "7"}},
		Answer{Status: 307, Header: map[string]string{"Location": "/elsewhere"}},
		Answer{Status: 204},
	))
	var got []string
	for range 4 {
		res, err := send(t, noRedirects, r.URL+"/script", "evt_1", testSecret, "{}")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintln(res.StatusCode, res.Header.Get("Retry-After"), res.Header.Get("Location")))
	}
	if diff := cmp.Diff([]string{"503 7 \n", "307  /elsewhere\n", "204  \n", "204  \n"}, got); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}

	r.SetAnswer("/attempts", func(received Received) Answer {
		if received.Attempt < 2 {
			return Answer{Status: 500}
		}
		return Answer{}
	})
	for _, c := range []struct {
		id     string
		status int
	}{{"evt_1", 500}, {"evt_2", 500}, {"evt_1", 200}, {"evt_2", 200}} {
		if res, err := send(t, noRedirects, r.URL+"/attempts", c.id, testSecret, "{}"); err != nil || res.StatusCode != c.status {
			t.Errorf("%s: answer %v, %v, want %d", c.id, res, err, c.status)
		}
	}
}

func TestReceiver_ResetsConnections(t *testing.T) {
	plain, secure := StartReceiver(t, testSecret), StartTLSReceiver(t, testSecret)
	trusting := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: secure.RootCAs}}}
	defer trusting.CloseIdleConnections()
	if res, err := send(t, trusting, secure.URL, "evt_1", testSecret, "{}"); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("answer by TLS: %v, %v", res, err)
	}
	for client, r := range map[*http.Client]*Receiver{noRedirects: plain, trusting: secure} {
		r.SetAnswer("", Script(Answer{Reset: true}))
		if _, err := send(t, client, r.URL, "evt_2", testSecret, "{}"); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the error is %v, want a reset connection", r.URL, err)
		}
	}
}

func TestReceiver_HangsUntilReleased(t *testing.T) {
	r := StartReceiver(t, testSecret)
	r.SetAnswer("/hang", Script(Answer{Hang: true, Status: 202}))
	status := make(chan int, 1) // sent to once, by the goroutine below
	go func() {
		res, err := send(t, noRedirects, r.URL+"/hang", "evt_1", testSecret, "{}")
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		status <- res.StatusCode
	}()
	r.Wait(t, 1, 5*time.Second)
	select {
	case got := <-status:
		t.Errorf("answered %d before the release", got)
	default:
	}
	r.Release()
	if got := <-status; got != 202 {
		t.Errorf("answered %d after the release, want 202", got)
	}

	impatient := &http.Client{Timeout: 50 * time.Millisecond}
	if _, err := send(t, impatient, r.URL+"/hang", "evt_2", testSecret, "{}"); err == nil {
		t.Error("answered a request that nobody released")
	}
}

func TestReceiver_KeepsBoundedMemory(t *testing.T) {
	r := NewReceiver(testSecret)
	for i := range maxKept + 10 {
		r.record(&Received{Path: "/", ID: fmt.Sprint(i), Header: http.Header{}})
	}
	if len(r.kept) != maxKept || len(r.attempts) != maxKept || r.Count() != maxKept+10 || r.kept[0].ID != "10" {
		t.Errorf("keeps %d requests from %s on and %d attempt counts of %d requests, want the last %d",
			len(r.kept), r.kept[0].ID, len(r.attempts), r.Count(), maxKept)
	}
	for i := range 5 {
		r.record(&Received{Path: "/", ID: fmt.Sprint("big", i), Header: http.Header{}, Body: make([]byte, maxKeptBytes/2)})
	}
	if r.keptBytes > maxKeptBytes || r.kept[len(r.kept)-1].ID != "big4" {
		t.Errorf("keeps %d bytes, want at most %d", r.keptBytes, maxKeptBytes)
	}
}
