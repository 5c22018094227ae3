package sink

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
)

func TestVerify_SaysWhichSchemeFailedAndWhy(t *testing.T) {
	now := time.Unix(goldenTime, 0)
	for _, c := range []struct {
		name               string
		change             func(h http.Header)
		body               string
		now                time.Time
		secrets            []string
		quintago, standard string // words of the errors; empty for none
	}{
		{name: "untouched"},
		{name: "other body", body: goldenBody + " ", quintago: "does not match", standard: "does not match"},
		{name: "other secret", secrets: []string{"other"}, quintago: "does not match", standard: "does not match"},
		{name: "one of two secrets", secrets: []string{"other", goldenSecret}},
		{name: "empty secrets are ignored", secrets: []string{"", goldenSecret}},
		{name: "no secret", secrets: []string{""}, quintago: "no secret", standard: "no secret"},
		{name: "unusable secret", secrets: []string{"whsec_x"}, quintago: "base64", standard: "base64"},
		{name: "no quintago header", change: func(h http.Header) { h.Del(HeaderSignature) }, quintago: "X-Quintago-Signature is missing"},
		{name: "upper-case digits", change: func(h http.Header) {
			h.Set(HeaderSignature, strings.ToUpper(h.Get(HeaderSignature)))
		}, quintago: "does not match"},
		{name: "no id", change: func(h http.Header) { h.Del(HeaderID) }, standard: "Webhook-Id is missing"},
		{name: "no timestamp", change: func(h http.Header) { h.Del(HeaderTimestamp) }, standard: "Webhook-Timestamp is missing"},
		{name: "no signature", change: func(h http.Header) { h.Del(HeaderStandardSignature) }, standard: "Webhook-Signature is missing"},
		{name: "other id", change: func(h http.Header) { h.Set(HeaderID, "msg_x") }, standard: "does not match"},
		{name: "other time", change: func(h http.Header) { h.Set(HeaderTimestamp, "1614265331") }, standard: "does not match"},
		{name: "words for a time", change: func(h http.Header) { h.Set(HeaderTimestamp, "now") }, standard: "not a count of seconds"},
		{name: "absurd time", change: func(h http.Header) { h.Set(HeaderTimestamp, "9223372036854775807") }, standard: "Webhook-Timestamp is more"},
		{name: "several entries", change: func(h http.Header) {
			h.Set(HeaderStandardSignature, "v1a,xxxx v1, "+h.Get(HeaderStandardSignature))
		}},
		{name: "another version", change: func(h http.Header) {
			h.Set(HeaderStandardSignature, strings.Replace(h.Get(HeaderStandardSignature), "v1,", "v2,", 1))
		}, standard: "does not match"},
		{name: "five minutes late", now: now.Add(5 * time.Minute)},
		{name: "later", now: now.Add(5*time.Minute + 1), standard: "in the past"},
		{name: "five minutes early", now: now.Add(-5 * time.Minute)},
		{name: "earlier", now: now.Add(-5*time.Minute - 1), standard: "in the future"},
	} {
		h := sign(t, goldenID, goldenBody, goldenSecret, "", now)
		if c.change != nil {
			c.change(h)
		}
		if c.body == "" {
			c.body = goldenBody
		}
		if c.now.IsZero() {
			c.now = now
		}
		if c.secrets == nil {
			c.secrets = []string{goldenSecret}
		}
		var secrets []secret.Text
		for _, s := range c.secrets {
			secrets = append(secrets, secret.New(s))
		}
		got := Verify(h, []byte(c.body), c.now, secrets...)
		checkReason(t, c.name+", X-Quintago-Signature", got.Quintago, c.quintago)
		checkReason(t, c.name+", Standard Webhooks", got.Standard, c.standard)
		if (got.Err() == nil) != (c.quintago == "" && c.standard == "") {
			t.Errorf("%s: Err returns %v", c.name, got.Err())
		}
	}
}

func checkReason(t *testing.T, name string, err error, want string) {
	t.Helper()
	if want == "" && err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%s: error %v, want one with %q", name, err, want)
	}
}

func TestVerify_JudgesARotationAsReceiversDo(t *testing.T) {
	now := time.Now()
	h := sign(t, "evt_1", testBody, "new", "old", now)
	for _, receiver := range []string{"new", "old"} {
		if err := Verify(h, []byte(testBody), now, secret.New(receiver)).Standard; err != nil {
			t.Errorf("receiver with the %s secret: %v", receiver, err)
		}
	}
	if err := Verify(h, []byte(testBody), now, secret.New("new")).Quintago; err != nil {
		t.Error(err)
	}
	if Verify(h, []byte(testBody), now, secret.New("old")).Quintago == nil {
		t.Error("a receiver that knows the old secret takes a header that it does not read")
	}
	if Verify(h, []byte(testBody), now, secret.New("older")).Err() == nil {
		t.Error("a third secret verifies")
	}
}
