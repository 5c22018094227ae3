package cli

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// developersApp is an app that keeps what it got and answers as the test says.
type developersApp struct {
	url    string
	got    []*http.Request
	bodies []string
}

func startApp(t *testing.T, answer http.HandlerFunc) *developersApp {
	t.Helper()
	app := &developersApp{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		app.got, app.bodies = append(app.got, r), append(app.bodies, string(body))
		answer(w, r)
	}))
	t.Cleanup(server.Close)
	app.url = server.URL + "/hook?key=sentinel"
	return app
}

// forwarding runs listen with --forward-to and returns its URL and what it prints.
func forwarding(t *testing.T, to string, asJSON bool) (string, *agenttest.Buffer) {
	t.Helper()
	f, err := newForwarder(to)
	if err != nil {
		t.Fatal(err)
	}
	return listening(t, &receiver{limit: 10_000, out: &printer{asJSON: asJSON}, secret: secret.New("the secret"), forwardTo: f})
}

func TestListen_PassesOnWhatItVerifiedAsItCame(t *testing.T) {
	app := startApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "7")
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "not now")
	})
	url, said := forwarding(t, app.url, false)
	var sent http.Header
	status := post(t, url, listenBody, listenBody, "the secret", time.Now(), func(h http.Header) {
		h.Set("User-Agent", "quintago-webhooks/1")
		h.Set("Connection", "X-Mine")
		h.Set("X-Mine", "of the connection")
		h["X-Twice"] = []string{"a", "b"}
		sent = h.Clone()
	})
	if status != http.StatusServiceUnavailable || len(app.got) != 1 || app.bodies[0] != listenBody {
		t.Fatalf("answered %d; the app got %q", status, app.bodies)
	}
	got := app.got[0].Header
	for _, name := range []string{sink.HeaderID, sink.HeaderTimestamp, sink.HeaderSignature, sink.HeaderStandardSignature, "User-Agent", "X-Twice"} {
		if strings.Join(got[name], " ") != strings.Join(sent[name], " ") {
			t.Errorf("%s is %q, was %q", name, got[name], sent[name])
		}
	}
	if v := sink.Verify(got, []byte(app.bodies[0]), time.Now(), secret.New("the secret")); v.Err() != nil {
		t.Errorf("the app cannot verify it: %v", v.Err())
	}
	if got.Get("X-Mine") != "" || app.got[0].URL.RawQuery != "key=sentinel" {
		t.Errorf("the app got %v at %s", got, app.got[0].URL)
	}
	if !strings.Contains(said.String(), "passed on, answered 503 after ") || !strings.Contains(said.String(), "passing on to http://127.0.0.1") || strings.Contains(said.String(), "sentinel") {
		t.Errorf("it says:\n%s", said)
	}
}

func TestListen_AnswersAsTheAppDoes(t *testing.T) {
	app := startApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/elsewhere")
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.WriteHeader(http.StatusFound)
		_, _ = io.WriteString(w, strings.Repeat("x", 2*maxAnswerBytes))
	})
	f, err := newForwarder(app.url)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{limit: 10_000, out: &printer{w: io.Discard}, forwardTo: f}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(listenBody)))
	if w.Code != http.StatusFound || w.Header().Get("Location") != "/elsewhere" || w.Header().Get("X-Hop") != "" || w.Body.Len() != maxAnswerBytes || len(app.got) != 1 {
		t.Errorf("answered %d with %v and %d bytes after %d requests", w.Code, w.Header(), w.Body.Len(), len(app.got))
	}
}

func TestListen_PassesNothingOnThatIsNotVerified(t *testing.T) {
	app := startApp(t, func(http.ResponseWriter, *http.Request) {})
	url, said := forwarding(t, app.url, false)
	if status := post(t, url, listenBody, listenBody, "another secret", time.Now(), nil); status != http.StatusUnauthorized || len(app.got) > 0 {
		t.Errorf("answered %d; the app got %q", status, app.bodies)
	}
	if strings.Contains(said.String(), "passed on") {
		t.Errorf("it says:\n%s", said)
	}
}

func TestListen_Answers502WhereTheAppIsDown(t *testing.T) {
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	url, said := forwarding(t, down.URL, false)
	if status := post(t, url, listenBody, listenBody, "the secret", time.Now(), nil); status != http.StatusBadGateway {
		t.Errorf("answered %d", status)
	}
	host := strings.TrimPrefix(down.URL, "http://")
	if want := "not passed on, answered 502: " + host + " gave no answer: "; strings.Count(said.String(), want) != 1 {
		t.Errorf("it does not say %q:\n%s", want, said)
	}
	url, said = forwarding(t, down.URL, true)
	post(t, url, listenBody, listenBody, "the secret", time.Now(), nil)
	var got reception
	if err := json.Unmarshal(said.Bytes(), &got); err != nil || got.Answered != http.StatusBadGateway || got.ForwardError == "" || got.ForwardMS == nil {
		t.Errorf("as JSON: %v, %s", err, said)
	}
	f, err := newForwarder("http://h.example")
	if err != nil {
		t.Fatal(err)
	}
	if got := f.reason(slow{}).Error(); got != "h.example did not answer within 30s" {
		t.Errorf("a slow app: %s", got)
	}
	if got := f.reason(errors.New("odd")).Error(); got != "h.example gave no answer: odd" {
		t.Errorf("another fault: %s", got)
	}
}

// slow is the error of a client whose time is over.
type slow struct{}

func (slow) Error() string   { return "slow" }
func (slow) Timeout() bool   { return true }
func (slow) Temporary() bool { return true }
