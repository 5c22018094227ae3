package sink

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/secret"
)

func TestTarget_SignsWithTheFormerSecretOnlyDuringARotation(t *testing.T) {
	w := newTestWebhook(t, nil)
	var header http.Header
	base := serve(t, func(_ http.ResponseWriter, r *http.Request) { header = r.Header })
	for _, c := range []struct {
		former  string
		rotates bool
		signs   bool
	}{
		{"", true, false},
		{"former", true, true},
		{"former", false, false},
		{"whsec_sentinel!", true, false}, // it has never signed anything
	} {
		target := w.Target(base, secret.New("current"), secret.New(c.former))
		got := w.Attempt(t.Context(), Request{Target: target, Rotates: c.rotates, EventID: "evt_1"})
		checkClass(t, got, "", 200)
		if signs := header.Get(HeaderSignaturePrevious) != ""; signs != c.signs {
			t.Errorf("former secret %q, rotates %t: it signs: %t, want %t", c.former, c.rotates, signs, c.signs)
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
		err := w.Target(c.url, secret.New(c.secret), secret.Text{}).Err()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with secret %q: %v, want %q", c.url, c.secret, err, c.want)
		}
	}
}

func TestTarget_ShowsNoSecret(t *testing.T) {
	target := newTestWebhook(t, nil).Target("https://hooks.example.com"+sentinelPath+"?"+sentinelQuery, secret.New(sentinelSecret), secret.New(sentinelSecret))
	checkNoSentinel(t, target)
	checkNoSentinel(t, Request{Target: target})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		checkNoSentinel(t, fmt.Sprintf(verb, *target))
	}
}
