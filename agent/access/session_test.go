package access

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/quintago/webhook-agent/secret"
)

const publicKey = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="

func texts(values ...string) (list []secret.Text) {
	for _, v := range values {
		list = append(list, secret.New(v))
	}
	return list
}

func testSessions(operator string, keys ...string) *Sessions {
	return NewSessions(secret.New(operator), texts(keys...))
}

var (
	testOperator = Principal{role: RoleOperator, scope: ScopeManage}
	testVenue    = Principal{role: RoleVenue, venue: "venue_1", scope: ScopeRead, subject: "user_1"}
)

func seal(t *testing.T, s *Sessions, p Principal) string {
	t.Helper()
	text, err := s.Seal(p, testNow.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestSessions_OfOneAgentAreThoseOfAnother(t *testing.T) {
	one, other := testSessions(operatorToken, sharedKey, publicKey), testSessions(operatorToken, publicKey, sharedKey)
	for _, p := range []Principal{testOperator, testVenue} {
		text := seal(t, one, p)
		got, err := other.Open(text, testNow)
		p.expires = testNow.Add(time.Hour)
		if err != nil || !got.expires.Equal(p.expires) || got.role != p.role || got.venue != p.venue || got.scope != p.scope || got.subject != p.subject {
			t.Errorf("%+v comes back as %+v (%v)", p, got, err)
		}
		if strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" || strings.Contains(text, base64.RawURLEncoding.EncodeToString([]byte("venue_1"))) {
			t.Errorf("the session %q can be read, or is not safe in a cookie", text)
		}
	}
}

func TestSessions_EndWithEveryTokenAndKey(t *testing.T) {
	text := seal(t, testSessions(operatorToken, sharedKey, publicKey), testVenue)
	for name, other := range map[string]*Sessions{
		"another operator's token":     testSessions(operatorToken+"x", sharedKey, publicKey),
		"no operator's token":          testSessions("", sharedKey, publicKey),
		"another shared key":           testSessions(operatorToken, sharedKey+"x", publicKey),
		"a key less":                   testSessions(operatorToken, sharedKey),
		"a key more":                   testSessions(operatorToken, sharedKey, publicKey, strings.Repeat("k", 32)),
		"the texts cut at other bytes": testSessions(operatorToken+sharedKey, publicKey),
	} {
		if p, err := other.Open(text, testNow); !errors.Is(err, ErrNoSession) || p != (Principal{}) {
			t.Errorf("%s: %+v (%v)", name, p, err)
		}
	}
}

func TestSessions_OfPublicKeysAloneAreOfTheProcess(t *testing.T) {
	for name, keys := range map[string][]string{"public keys": {publicKey}, "no keys": nil} {
		text := seal(t, testSessions("", keys...), testOperator)
		if p, err := testSessions("", keys...).Open(text, testNow); err == nil {
			t.Errorf("%s: who knows what is public makes sessions: %+v", name, p)
		}
	}
}

func TestSessions_RefuseEveryOtherText(t *testing.T) {
	s := testSessions(operatorToken, sharedKey)
	good := seal(t, s, testVenue)
	other := seal(t, s, testOperator)
	raw, err := base64.RawURLEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	content := func(change func(map[string]any)) string {
		c := map[string]any{"v": 1, "r": "venue", "n": "venue_1", "c": "read", "e": testNow.Add(time.Hour).Unix()}
		change(c)
		plain, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(s.aead.Seal(nil, nil, plain, []byte(sessionPurpose)))
	}
	if _, err := s.Open(content(func(map[string]any) {}), testNow); err != nil {
		t.Fatalf("the content of this test is none of a session: %v", err)
	}
	foreign := &Sessions{newSessionAEAD([]byte("other material"), sessionPurpose)}
	material := bytes.Repeat([]byte{1}, 32)
	for name, text := range map[string]string{
		"nothing":                       "",
		"a token":                       sign(t, jwt.SigningMethodHS256, []byte(sharedKey), goodClaims()),
		"the operator's token":          operatorToken,
		"cut":                           good[:len(good)-4],
		"longer":                        good + "AAAA",
		"with blanks":                   good[:8] + "\n" + good[8:],
		"padded":                        good + "=",
		"the nonce of another":          other[:16] + good[16:],
		"the tag of another":            good[:len(good)-16] + other[len(other)-16:],
		"plain":                         base64.RawURLEncoding.EncodeToString([]byte(`{"v":1,"r":"operator","c":"manage","e":99999999999}`)),
		"of another key":                seal(t, foreign, testVenue),
		"too long":                      strings.Repeat("A", maxSessionLength+1),
		"of another purpose":            base64.RawURLEncoding.EncodeToString(s.aead.Seal(nil, nil, []byte(`{"v":1,"r":"operator","c":"manage","e":1795870800}`), []byte("csrf"))),
		"of another version":            content(func(c map[string]any) { c["v"] = 2 }),
		"of no role":                    content(func(c map[string]any) { delete(c, "r") }),
		"of an unknown role":            content(func(c map[string]any) { c["r"] = "root" }),
		"of an operator with a venue":   content(func(c map[string]any) { c["r"] = "operator" }),
		"of a venue without a name":     content(func(c map[string]any) { delete(c, "n") }),
		"of every venue":                content(func(c map[string]any) { c["n"] = "*" }),
		"of an unknown scope":           content(func(c map[string]any) { c["c"] = "all" }),
		"without an end":                content(func(c map[string]any) { delete(c, "e") }),
		"that ends after a day":         content(func(c map[string]any) { c["e"] = testNow.Add(LongestSession + time.Minute).Unix() }),
		"that never ends":               content(func(c map[string]any) { c["e"] = int64(1) << 62 }),
		"that is not JSON":              base64.RawURLEncoding.EncodeToString(s.aead.Seal(nil, nil, []byte("x"), []byte(sessionPurpose))),
		"of a key with another purpose": seal(t, &Sessions{newSessionAEAD(material, "links")}, testVenue),
	} {
		at := s
		if name == "of a key with another purpose" {
			at = &Sessions{newSessionAEAD(material, sessionPurpose)}
		}
		if p, err := at.Open(text, testNow); err == nil || p != (Principal{}) {
			t.Errorf("%s: %+v (%v)", name, p, err)
		}
	}
	for i := range raw {
		changed := bytes.Clone(raw)
		changed[i] ^= 1
		if p, err := s.Open(base64.RawURLEncoding.EncodeToString(changed), testNow); !errors.Is(err, ErrNoSession) || p != (Principal{}) {
			t.Fatalf("byte %d changed: %+v (%v)", i, p, err)
		}
	}
}

func TestSessions_EndWhenTheirTimeIsOver(t *testing.T) {
	s := testSessions(operatorToken)
	text := seal(t, s, testOperator)
	if _, err := s.Open(text, testNow.Add(time.Hour-time.Second)); err != nil {
		t.Errorf("a second before its end: %v", err)
	}
	if p, err := s.Open(text, testNow.Add(time.Hour)); !errors.Is(err, ErrSessionEnded) || p != (Principal{}) {
		t.Errorf("at its end: %+v (%v)", p, err)
	}
}

func TestSessions_FitIntoACookie(t *testing.T) {
	s := testSessions(operatorToken)
	longest := Principal{RoleVenue, strings.Repeat("<", maxVenueLength), ScopeManage, strings.Repeat("<", maxSubjectLength), time.Time{}}
	text := seal(t, s, longest)
	if got, err := s.Open(text, testNow); err != nil || got.subject != longest.subject || len(text) > 3900 {
		t.Errorf("a session of %d bytes: %v", len(text), err)
	}
}

func TestSessions_SealNobody(t *testing.T) {
	s := testSessions(operatorToken)
	for _, p := range []Principal{{}, {scope: ScopeManage}, {role: RoleVenue, scope: ScopeRead}, {role: RoleOperator, venue: "v", scope: ScopeManage}} {
		if text, err := s.Seal(p, testNow.Add(time.Hour)); err == nil {
			t.Errorf("%+v gets %q", p, text)
		}
	}
	if text := fmt.Sprintf("%v %+v %#v", s, s, *s); strings.Contains(text, "sentinel") {
		t.Errorf("Sessions show their key: %s", text)
	}
}

func TestVerifyToken_IsVerifyWithoutTheHeader(t *testing.T) {
	v := newTestVerifier(t, sharedKey)
	if p, err := v.VerifyToken(operatorToken); err != nil || p.Role() != RoleOperator {
		t.Errorf("the operator's token gives %+v (%v)", p, err)
	}
	if p, err := v.VerifyToken(sign(t, jwt.SigningMethodHS256, []byte(sharedKey), goodClaims())); err != nil || p.Venue() != "venue_1" {
		t.Errorf("a venue's token gives %+v (%v)", p, err)
	}
	for token, want := range map[string]error{"": ErrNoToken, "x": errSignature} {
		if p, err := v.VerifyToken(token); !errors.Is(err, want) || p != (Principal{}) {
			t.Errorf("%q gives %+v (%v)", token, p, err)
		}
	}
	if _, err := v.VerifyToken(strings.Repeat("a", maxTokenLength+1)); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("a long token gives %v", err)
	}
	if _, err := NewVerifier(secret.Text{}, Keys{}).VerifyToken("x"); !errors.Is(err, ErrOff) {
		t.Errorf("without tokens: %v", err)
	}
}

// Whatever a browser sends, only what was sealed is opened.
func FuzzSessions(f *testing.F) {
	s := testSessions(operatorToken, sharedKey)
	for _, p := range []Principal{testOperator, testVenue} {
		text, err := s.Seal(p, testNow.Add(time.Hour))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, "venue_1", "user")
		f.Add(text[1:], "", "\x00")
	}
	f.Fuzz(func(t *testing.T, text, venue, subject string) {
		if p, err := s.Open(text, testNow.Add(2*time.Hour)); err == nil || p != (Principal{}) {
			t.Fatalf("%q opens as %+v", text, p)
		}
		p := Principal{RoleVenue, venue, ScopeRead, printable(subject), time.Time{}}
		sealed, err := s.Seal(p, testNow.Add(time.Hour))
		if err != nil {
			return // no Verifier gives such a caller
		}
		got, err := s.Open(sealed, testNow)
		if err != nil || got.venue != p.venue || got.subject != p.subject || got.MayManage() || got.role != RoleVenue {
			t.Fatalf("%+v comes back as %+v (%v)", p, got, err)
		}
	})
}
