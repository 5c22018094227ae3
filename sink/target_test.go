package sink

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
)

func TestTarget_SignsWithTheFormerSecretOnlyDuringARotation(t *testing.T) {
	w := newTestWebhook(t, nil)
	var header http.Header
	base := serve(t, func(_ http.ResponseWriter, r *http.Request) { header = r.Header })
	for _, c := range []struct {
		former string
		before time.Duration
		signs  bool
	}{
		{"", 1, false},
		{"former", 1, true},
		{"former", 0, false},
		{"whsec_sentinel!", 1, false}, // it has never signed anything
	} {
		now := time.Now()
		target := w.Target(base, secret.New("current"), Former{secret.New(c.former), now})
		got := w.Attempt(t.Context(), Request{Target: target, EventID: "evt_1", At: now.Add(-c.before)})
		checkClass(t, got, "", 200)
		if signs := header.Get(HeaderSignaturePrevious) != ""; signs != c.signs {
			t.Errorf("former secret %q, %s before it ends: it signs: %t, want %t", c.former, c.before, signs, c.signs)
		}
	}
}

func TestAttempt_SendsTheTraceparentOnlyWhereThereIsOne(t *testing.T) {
	w := newTestWebhook(t, nil)
	var header http.Header
	target := w.Target(serve(t, func(_ http.ResponseWriter, r *http.Request) { header = r.Header }), secret.New("current"))
	for _, traceparent := range []string{"", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"} {
		checkClass(t, w.Attempt(t.Context(), Request{Target: target, EventID: "evt_1", Traceparent: traceparent}), "", 200)
		sent, has := header["Traceparent"]
		if has != (traceparent != "") || has && (len(sent) != 1 || sent[0] != traceparent) {
			t.Errorf("%q was sent as %q", traceparent, sent)
		}
	}
}

func TestTarget_SaysWhyNothingCanBeSent(t *testing.T) {
	w := newTestWebhook(t, nil)
	for _, c := range []struct{ url, secret, want string }{
		{"https://hooks.example.com/", "key", ""},
		{"ftp://hooks.example.com/", "key", "https://"},
		{"http://10.0.0.1/", "key", "network.allow_networks"},
		{"https://hooks.example.com/", "", "empty"},
	} {
		err := w.Target(c.url, secret.New(c.secret)).Err()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with secret %q: %v, want %q", c.url, c.secret, err, c.want)
		}
	}
}

func TestTarget_ShowsNoSecret(t *testing.T) {
	target := rotating(newTestWebhook(t, nil), "https://hooks.example.com"+sentinelPath+"?"+sentinelQuery, secret.New(sentinelSecret), secret.New(sentinelSecret+"2"))
	checkNoSentinel(t, target)
	checkNoSentinel(t, Request{Target: target})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		checkNoSentinel(t, fmt.Sprintf(verb, *target))
	}
}
