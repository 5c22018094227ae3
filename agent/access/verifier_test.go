package access

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
)

const (
	sharedKey     = "sentinel-shared-key-0123456789abcdef"
	operatorToken = "sentinel-operator-0123456789abcdef0123"
)

var testNow = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// newTestVerifier accepts the operator's token, and tokens of the keys, at testNow.
func newTestVerifier(t *testing.T, keys ...string) *Verifier {
	t.Helper()
	var texts []secret.Text
	for _, key := range keys {
		texts = append(texts, secret.New(key))
	}
	parsed, err := NewKeys(texts)
	if err != nil {
		t.Fatal(err)
	}
	v := NewVerifier(secret.New(operatorToken), parsed)
	v.now = func() time.Time { return testNow }
	return v
}

// verify verifies a request with a field Authorization.
func verify(v *Verifier, authorization string) (Principal, error) {
	r := httptest.NewRequest(http.MethodGet, "/api/v1/whoami?token=sentinel&access_token=sentinel", nil)
	r.Header.Set("Cookie", "token="+operatorToken)
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	return v.Verify(r)
}

// goodClaims are those of a token that is accepted.
func goodClaims() jwt.MapClaims {
	return jwt.MapClaims{
		"aud": "webhook-agent", "venue": "venue_1", "scope": "manage", "sub": "user_1",
		"iat": testNow.Unix(), "exp": testNow.Add(5 * time.Minute).Unix(),
	}
}

// with returns claims with some changed; a nil value takes one out.
func with(changes jwt.MapClaims) jwt.MapClaims {
	c := goodClaims()
	for name, value := range changes {
		if value == nil {
			delete(c, name)
		} else {
			c[name] = value
		}
	}
	return c
}

func sign(t *testing.T, method jwt.SigningMethod, key any, c jwt.MapClaims) string {
	t.Helper()
	text, err := jwt.NewWithClaims(method, c).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestVerifier_KnowsTheOperatorAndVenues(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	v := newTestVerifier(t, strings.Repeat("k", 40), sharedKey, "ed25519:"+base64.StdEncoding.EncodeToString(public))

	operator, err := verify(v, "bearer  "+operatorToken)
	if err != nil || operator.Role() != RoleOperator || !operator.MayManage() || operator.Venue() != "" {
		t.Errorf("the operator is %+v (%v)", operator, err)
	}
	for name, token := range map[string]string{
		"HS256": sign(t, jwt.SigningMethodHS256, []byte(sharedKey), goodClaims()),
		"EdDSA": sign(t, jwt.SigningMethodEdDSA, private, goodClaims()),
	} {
		p, err := verify(v, "Bearer "+token)
		if err != nil || p.Role() != RoleVenue || p.Venue() != "venue_1" || !p.MayManage() || p.Subject() != "user_1" || !p.Expires().Equal(testNow.Add(5*time.Minute)) {
			t.Errorf("%s: the caller is %+v (%v)", name, p, err)
		}
	}
	read, err := verify(v, "Bearer "+sign(t, jwt.SigningMethodHS256, []byte(sharedKey), with(jwt.MapClaims{"scope": "read", "aud": []string{"other", "webhook-agent"}})))
	if err != nil || read.MayManage() || read.Scope() != ScopeRead {
		t.Errorf("the scope read gives %+v (%v)", read, err)
	}
}

func TestVerifier_RefusesEveryOtherToken(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	encoded := base64.StdEncoding.EncodeToString(public)
	v := newTestVerifier(t, sharedKey, "ed25519:"+encoded)
	hs := func(c jwt.MapClaims) string {
		return "Bearer " + sign(t, jwt.SigningMethodHS256, []byte(sharedKey), c)
	}
	none, err := jwt.NewWithClaims(jwt.SigningMethodNone, goodClaims()).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	crit := jwt.NewWithClaims(jwt.SigningMethodHS256, goodClaims())
	crit.Header["crit"] = []string{"exp"}
	critical, err := crit.SignedString([]byte(sharedKey))
	if err != nil {
		t.Fatal(err)
	}
	good := sign(t, jwt.SigningMethodHS256, []byte(sharedKey), goodClaims())
	parts := strings.Split(good, ".")
	_, otherPrivate, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ authorization, want string }{
		"no token":                    {"", ErrNoToken.Error()},
		"another scheme":              {"Basic " + good, "Bearer"},
		"no text":                     {"Bearer ", "Bearer"},
		"no token at all":             {"Bearer garbage", "neither"},
		"the operator's, cut":         {"Bearer " + operatorToken[1:], "neither"},
		"the operator's, longer":      {"Bearer " + operatorToken + "x", "neither"},
		"too long":                    {"Bearer " + strings.Repeat("a", maxTokenLength+1), "bytes"},
		"alg none":                    {"Bearer " + none, "neither"},
		"alg none, with signature":    {"Bearer " + none + parts[2], "neither"},
		"another shared key":          {"Bearer " + sign(t, jwt.SigningMethodHS256, []byte(strings.Repeat("x", 32)), goodClaims()), "neither"},
		"HS512 with the shared key":   {"Bearer " + sign(t, jwt.SigningMethodHS512, []byte(sharedKey), goodClaims()), "neither"},
		"public key as shared key":    {"Bearer " + sign(t, jwt.SigningMethodHS256, []byte(public), goodClaims()), "neither"},
		"base64 as shared key":        {"Bearer " + sign(t, jwt.SigningMethodHS256, []byte(encoded), goodClaims()), "neither"},
		"text of key as shared key":   {"Bearer " + sign(t, jwt.SigningMethodHS256, []byte("ed25519:"+encoded), goodClaims()), "neither"},
		"PEM as shared key":           {"Bearer " + sign(t, jwt.SigningMethodHS256, publicPEM, goodClaims()), "neither"},
		"another private key":         {"Bearer " + sign(t, jwt.SigningMethodEdDSA, otherPrivate, goodClaims()), "neither"},
		"signature cut":               {"Bearer " + good[:len(good)-1], "neither"},
		"signature of another token":  {"Bearer " + parts[0] + "." + parts[1] + "." + strings.Split(sign(t, jwt.SigningMethodHS256, []byte(sharedKey), with(jwt.MapClaims{"venue": "venue_2"})), ".")[2], "neither"},
		"crit":                        {"Bearer " + critical, "crit"},
		"ended":                       {hs(with(jwt.MapClaims{"exp": testNow.Add(-31 * time.Second).Unix()})), "ended"},
		"no end":                      {hs(with(jwt.MapClaims{"exp": nil})), "missing"},
		"ends too late":               {hs(with(jwt.MapClaims{"exp": testNow.Add(16 * time.Minute).Unix()})), "15 minutes"},
		"ends never":                  {hs(with(jwt.MapClaims{"exp": 1 << 53})), "15 minutes"},
		"end is a text":               {hs(with(jwt.MapClaims{"exp": "tomorrow"})), "the claim exp must be a number"},
		"subject is a number":         {hs(with(jwt.MapClaims{"sub": 42})), "the claim sub must be a text"},
		"venue is a number":           {hs(with(jwt.MapClaims{"venue": 1})), "the claim venue must be a text"},
		"audience is a number":        {hs(with(jwt.MapClaims{"aud": []any{"webhook-agent", 1}})), "the claim aud must be a text, or a list of texts"},
		"number, another key":         {"Bearer " + sign(t, jwt.SigningMethodHS256, []byte(strings.Repeat("x", 32)), with(jwt.MapClaims{"sub": 42})), "neither"},
		"number, EdDSA":               {"Bearer " + sign(t, jwt.SigningMethodEdDSA, private, with(jwt.MapClaims{"scope": 1})), "the claim scope must be a text"},
		"no name that is known":       {hs(with(jwt.MapClaims{"Sub": 42})), "cannot be read"},
		"signed in the future":        {hs(with(jwt.MapClaims{"iat": testNow.Add(time.Minute).Unix()})), "future"},
		"not valid yet":               {hs(with(jwt.MapClaims{"nbf": testNow.Add(time.Minute).Unix()})), "not valid yet"},
		"no audience":                 {hs(with(jwt.MapClaims{"aud": nil})), "missing"},
		"another audience":            {hs(with(jwt.MapClaims{"aud": "app"})), "aud"},
		"no venue":                    {hs(with(jwt.MapClaims{"venue": nil})), "venue"},
		"blank venue":                 {hs(with(jwt.MapClaims{"venue": "  "})), "venue"},
		"pattern":                     {hs(with(jwt.MapClaims{"venue": "*"})), "pattern"},
		"pattern of SQL":              {hs(with(jwt.MapClaims{"venue": "venue_%"})), "pattern"},
		"list of venues":              {hs(with(jwt.MapClaims{"venue": []string{"venue_1", "venue_2"}})), "the claim venue must be a text"},
		"long venue":                  {hs(with(jwt.MapClaims{"venue": strings.Repeat("v", 201)})), "200"},
		"venue with a control":        {hs(with(jwt.MapClaims{"venue": "venue\x00"})), "venue"},
		"no scope":                    {hs(with(jwt.MapClaims{"scope": nil})), "scope"},
		"unknown scope":               {hs(with(jwt.MapClaims{"scope": "admin"})), "scope"},
		"operator by a claim":         {hs(with(jwt.MapClaims{"venue": nil, "role": "operator"})), "venue"},
		"EdDSA header, HMAC's secret": {"Bearer " + sign(t, jwt.SigningMethodEdDSA, private, with(jwt.MapClaims{"aud": "x"})), "aud"},
	} {
		p, err := verify(v, c.authorization)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
			continue
		}
		if p != (Principal{}) || p.MayManage() || p.Role() != "" {
			t.Errorf("%s: it is refused, and gives %+v", name, p)
		}
		if strings.Contains(err.Error(), "sentinel") {
			t.Errorf("%s: the error quotes a secret: %v", name, err)
		}
	}
}

func TestVerifier_IsOffWithoutTokens(t *testing.T) {
	v := NewVerifier(secret.Text{}, Keys{})
	for _, authorization := range []string{"", "Bearer ", "Bearer x"} {
		if _, err := verify(v, authorization); !errors.Is(err, ErrOff) {
			t.Errorf("%q: %v, want %v", authorization, err, ErrOff)
		}
	}
	// Without the operator's token the empty one is not his.
	venues := newTestVerifier(t, sharedKey)
	venues.hasOperator = false
	if p, err := verify(venues, "Bearer "+operatorToken); err == nil {
		t.Errorf("a listener for venues lets the operator in: %+v", p)
	}
}

func TestNewKeys_SaysWhatIsWrongWithoutQuoting(t *testing.T) {
	_, err := NewKeys([]secret.Text{
		secret.New("sentinel-short"), secret.New(sharedKey), secret.New("ed25519:sentinel"), secret.New("ed25519:" + base64.StdEncoding.EncodeToString(make([]byte, 31))),
		secret.New("-----BEGIN PUBLIC KEY-----\nsentinel-sentinel-sentinel-sentinel\n-----END PUBLIC KEY-----"),
	})
	if err == nil {
		t.Fatal("it takes them all")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 4 || strings.Contains(err.Error(), "sentinel") {
		t.Errorf("the errors are %q, want one for each but the second, without the keys", lines)
	}
	keys := newTestVerifier(t, sharedKey).keys
	if text := fmt.Sprintf("%v %+v %#v", keys, keys, keys.keys); strings.Contains(text, "sentinel") || strings.Contains(text, "115, 101, 110") {
		t.Errorf("keys show themselves: %s", text)
	}
}

func TestMint_SignsWhatTheVerifierAccepts(t *testing.T) {
	v := newTestVerifier(t, sharedKey)
	token, err := v.keys.Mint("venue_1", ScopeRead, LongestToken, testNow)
	if err != nil {
		t.Fatal(err)
	}
	p, err := verify(v, "Bearer "+token.Reveal())
	if err != nil || p.Venue() != "venue_1" || p.MayManage() {
		t.Errorf("the caller is %+v (%v)", p, err)
	}
	for _, venue := range []string{"", "*", " x"} {
		if _, err := v.keys.Mint(venue, ScopeRead, time.Minute, testNow); err == nil {
			t.Errorf("it signs for the venue %q", venue)
		}
	}
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newTestVerifier(t, "ed25519:"+base64.StdEncoding.EncodeToString(public)).keys.Mint("v", ScopeRead, time.Minute, testNow); !errors.Is(err, ErrCannotSign) {
		t.Errorf("a public key signs: %v", err)
	}
}

func TestPrincipal_ThatNobodyVerifiedSeesNothing(t *testing.T) {
	db, err := outbox.Open(t.Context(), outbox.Config{URL: secret.New("postgres://u:p@127.0.0.1:1/none"), Table: "webhooks.outbox"})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := (Principal{}).View(db).Endpoints(t.Context(), outbox.EndpointFilter{Limit: 1}); err == nil || !strings.Contains(err.Error(), "without a venue") {
		t.Errorf("nobody's view gives %v, want that it sees nothing", err)
	}
}
