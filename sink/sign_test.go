package sink

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/quintago/webhook-agent/secret"
)

const (
	// This is the secret and payload of the examples of Standard Webhooks, with the signature that
	// its libraries are tested with.
	goldenSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	goldenID     = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	goldenBody   = `{"test": 2432232314}`
	goldenTime   = 1614265330

	whsecOther = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
)

func sign(t testing.TB, id, body, current, previous string, at time.Time) http.Header {
	t.Helper()
	h := http.Header{}
	if err := Sign(h, id, at, []byte(body), secret.New(current), secret.New(previous)); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestSign_GivesTheGoldenSignatures(t *testing.T) {
	got := sign(t, goldenID, goldenBody, goldenSecret, "", time.Unix(goldenTime, 999))
	want := http.Header{
		"X-Quintago-Signature": {"sha256=80ec8a89ce3cd22133a1066caecb4d04fea7467657c8514d717ec42c38a5c94c"},
		"Webhook-Id":           {goldenID},
		"Webhook-Timestamp":    {"1614265330"},
		"Webhook-Signature":    {"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
}

// The customer documentation has this: createHmac('sha256',
// WEBHOOK_SECRET).update(payload).digest('hex').
func TestSign_IsWhatTheCustomerDocumentationComputes(t *testing.T) {
	for _, key := range []string{goldenSecret, "any text", "pässword", "two  spaces", "wh_sec"} {
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write([]byte(testBody))
		want := "sha256=" + hex.EncodeToString(mac.Sum(nil))
		if got := sign(t, "evt_1", testBody, key, "", time.Now()).Get("x-quintago-signature"); got != want {
			t.Errorf("secret %q: %s, want %s", key, got, want)
		}
	}
}

func TestSign_IsAcceptedByTheStandardWebhooksLibrary(t *testing.T) {
	for _, c := range []struct{ name, current, previous, receiver string }{
		{"whsec_", goldenSecret, "", goldenSecret},
		{"text", "any text", "", "any text"},
		{"one character", "x", "", "x"},
		{"not ASCII", "pässword", "", "pässword"},
		{"base64 without the prefix", goldenSecret[6:], "", goldenSecret[6:]},
		{"longer than a key of the standard", strings.Repeat("long", 100), "", strings.Repeat("long", 100)},
		{"rotation, receiver has the new one", goldenSecret, whsecOther, goldenSecret},
		{"rotation, receiver has the old one", goldenSecret, whsecOther, whsecOther},
		{"rotation from text to whsec_", goldenSecret, "any text", "any text"},
	} {
		h := sign(t, "evt_1", testBody, c.current, c.previous, time.Now())
		given, err := StandardSecret(secret.New(c.receiver))
		if err != nil || strings.HasPrefix(c.receiver, "whsec_") && given.Reveal() != c.receiver {
			t.Fatalf("%s: %v; a whsec_ secret is given as it is", c.name, err)
		}
		oracle, err := standardwebhooks.NewWebhook(given.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		if err := oracle.Verify([]byte(testBody), h); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := oracle.Verify([]byte(testBody+" "), h); err == nil {
			t.Errorf("%s: the library verifies another body", c.name)
		}
	}
}

func TestSign_UsesThePreviousSecretDuringARotation(t *testing.T) {
	h := sign(t, "evt_1", testBody, "new", "old", time.Now())
	old := sign(t, "evt_1", testBody, "old", "", time.Now())
	if h.Get(HeaderSignaturePrevious) != old.Get(HeaderSignature) {
		t.Errorf("%s: %s, want the signature with the old secret", HeaderSignaturePrevious, h.Get(HeaderSignaturePrevious))
	}
	if n := len(strings.Fields(h.Get(HeaderStandardSignature))); n != 2 {
		t.Errorf("%d entries in %s, want 2", n, HeaderStandardSignature)
	}
}

func TestSign_LeavesTheHeaderAloneWhenASecretIsUnusable(t *testing.T) {
	for _, c := range [][2]string{{"", "old"}, {"new", "whsec_x"}} {
		h := http.Header{}
		if err := Sign(h, "evt_1", time.Now(), nil, secret.New(c[0]), secret.New(c[1])); err == nil || len(h) != 0 {
			t.Errorf("secrets %q: error %v, header %v", c, err, h)
		}
	}
}

func TestCheckSecret_SaysWhatIsWrong(t *testing.T) {
	encode := func(n int) string {
		key := make([]byte, n)
		for i := range key {
			key[i] = byte(i)
		}
		return "whsec_" + base64.StdEncoding.EncodeToString(key)
	}
	for _, c := range []struct{ secret, want string }{
		{encode(24), ""},
		{encode(64), ""},
		{"x", ""},
		{"wh_sec", ""},
		{"a secret with a blank", ""},
		{`it's "quoted"`, ""},
		{`"`, "quotes"},
		{`'tis "quoted" and it's fine`, ""},
		{"envelope", ""},
		{"wise_" + goldenSecret[6:], ""},
		{"wsec_not base64", ""},
		{"пароль", ""},
		{"WHSEC_x", "capital letters"},
		{"Whsec_" + goldenSecret[6:], "capital letters"},
		{"v1,whsec_x", "from whsec_ on"},
		{"whsk_" + goldenSecret[6:], "asymmetric"},
		{"WHPK_x", "asymmetric"},
		{" x", "blank"},
		{"x\t", "blank"},
		{`"x"`, "quotes"},
		{"'" + goldenSecret + "'", "quotes"},
		{"`x`", "quotes"},
		{"", "empty"},
		{"whsec_", "holds 0"},
		{encode(23), "holds 23"},
		{encode(65), "holds 65"},
		{"whsec_" + strings.Repeat("A", 32), "repeats one byte"},
		{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", "at character"},   // no padding
		{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS-", "character 38"},  // the url-safe alphabet
		{"whsec_MfKQ9r8GKYqrTwjU PD8ILPZIo2LaLaSw", "character 23"}, // a space
		{goldenSecret + "\n", "blank"},
		{"whsec_MfKQ9r8GKYqrTwj\nUPD8ILPZIo2LaLaSw", "character 22"},
		{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwAB==", "at character"}, // bits behind the end
	} {
		err := CheckSecret(secret.New(c.secret))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%q is refused: %v", c.secret, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%q: error %v, want one with %q", c.secret, err, c.want)
		}
	}
}

func TestCheckSecret_RefusesNearMissesOfThePrefix(t *testing.T) {
	const key = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	for _, s := range []string{
		"whsec-K", "whsec:K", "whsecK", "whsec _K", "wsec_K", "whsce_K", "whsecc_K", "whzec-K", "whsecret_K", "v1, whsec_K", "v1;whsec_K",
		"v1whsec_K", "v1a,whsec_K", `"whsec_K`, "whsec_K'", "“whsec_K”", "„whsec_K“", "«whsec_K»", "<whsec_K>", "secret=whsec_K",
		"WHSEC=whsec_K", "WHSEC=K", "Bearer whsec_K", "base64:whsec_K", "\u200bwhsec_K", "\ufeffwhsec_K", "whsec_\u2060K", "whsec_K\u200e",
		"ｗｈｓｅｃ＿K", "ｗhsec_K", "whseс_K", "whsеc_K", "whséc_K", "ENV:FOO", "env:FOO", "File:/run/secret", "plain\ntext", "plain\x00text",
		"plain\x7ftext", "plain\u2028text", `plain"`, "”plain", "plain\xff", "see whsk_K",
	} {
		s = strings.ReplaceAll(s, "K", key)
		err := CheckSecret(secret.New(s))
		if err == nil {
			t.Errorf("%q is accepted", s)
		} else if strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "FOO") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: the sentence shows the secret, or is more than one: %v", s, err)
		}
	}
}

func TestGenerateSecret_IsUsableAndNew(t *testing.T) {
	a, b := GenerateSecret(), GenerateSecret()
	if err := CheckSecret(a); err != nil {
		t.Error(err)
	}
	if key, err := parseSecret(a); err != nil || len(key.standard) != 32 {
		t.Errorf("a key of %d bytes (error %v), want 32", len(key.standard), err)
	}
	if a.Equal(b) {
		t.Error("two secrets are equal")
	}
}

func FuzzParseSecret(f *testing.F) {
	for _, s := range []string{"", "x", goldenSecret, "whsec_", "whsec_\n", "whsec_===="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		key, err := parseSecret(secret.New(s))
		encoded, whsec := strings.CutPrefix(s, "whsec_")
		switch {
		case err != nil && s != "" && !whsec && checkSpelling(s) == nil:
			t.Errorf("a plain secret is refused: %v", err)
		case err != nil && len(encoded) > 8 && strings.Contains(err.Error(), encoded):
			t.Errorf("the error repeats the secret: %v", err)
		case err != nil:
		case string(key.quintago) != s:
			t.Error("the secret is not used as written")
		case whsec && base64.StdEncoding.EncodeToString(key.standard) != encoded:
			t.Error("two texts give the same key")
		}
	})
}
