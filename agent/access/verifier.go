package access

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/golang-jwt/jwt/v5"

	"github.com/quintago/webhook-agent/secret"
)

const (
	// leeway is how far the clocks of the app and the agent may differ.
	leeway = 30 * time.Second
	// maxTokenLength bounds what is parsed, in bytes.
	maxTokenLength = 4096
	// maxSubjectLength bounds what of a claim sub goes to the log, in bytes.
	maxSubjectLength = 200
)

// Errors of Verify. Every other error says what is wrong with a token.
var (
	// ErrOff reports that no token is configured, so nobody may call.
	ErrOff = errors.New("the API is off, since no token is configured")
	// ErrNoToken reports that the request has no token.
	ErrNoToken = errors.New("the request has no token")
)

// Verifier verifies the tokens of requests.
type Verifier struct {
	// Operator accepts the operator's token; a listener for venues alone leaves it zero. The hash of
	// the token is kept, so that a comparison takes the same time for every length.
	operator    [sha256.Size]byte
	hasOperator bool
	keys        Keys
	now         func() time.Time
}

// NewVerifier returns a Verifier of the operator's token, which may be zero for none, and of tokens
// that keys have signed.
func NewVerifier(operator secret.Text, keys Keys) *Verifier {
	return &Verifier{operator: sha256.Sum256([]byte(operator.Reveal())), hasOperator: !operator.IsZero(), keys: keys, now: time.Now}
}

// Verify returns who sends a request. It looks at the field Authorization alone (RFC 6750, section
// 2.1): a token in a URL is in logs, and a cookie is sent by a browser on its own. A returned error
// quotes nothing of a token whose signature is not valid.
func (v *Verifier) Verify(r *http.Request) (Principal, error) {
	if !v.hasOperator && v.keys.Empty() {
		return Principal{}, ErrOff
	}
	fields := r.Header.Values("Authorization")
	if len(fields) == 0 {
		return Principal{}, ErrNoToken
	}
	scheme, token, _ := strings.Cut(fields[0], " ")
	token = strings.TrimSpace(token)
	switch {
	case len(fields) > 1:
		return Principal{}, errors.New("the request has several Authorization fields")
	case !strings.EqualFold(scheme, "Bearer") || token == "":
		return Principal{}, errors.New("the field Authorization must be Bearer and a token")
	}
	return v.VerifyToken(token)
}

// VerifyToken returns who has a token, which came by a form. Its errors are those of Verify.
func (v *Verifier) VerifyToken(token string) (Principal, error) {
	switch {
	case !v.hasOperator && v.keys.Empty():
		return Principal{}, ErrOff
	case token == "":
		return Principal{}, ErrNoToken
	case len(token) > maxTokenLength:
		return Principal{}, fmt.Errorf("the token has more than %d bytes", maxTokenLength)
	}
	sum := sha256.Sum256([]byte(token))
	if v.hasOperator && subtle.ConstantTimeCompare(sum[:], v.operator[:]) == 1 {
		return Principal{role: RoleOperator, scope: ScopeManage}, nil
	}
	return v.verifyVenue(token)
}

var errSignature = errors.New("the token is neither the operator's nor signed with a key of console.keys")

// verifyVenue verifies a venue's token. Each key is tried with its own algorithm alone.
func (v *Verifier) verifyVenue(token string) (Principal, error) {
	for _, key := range v.keys.keys {
		parser := jwt.NewParser(
			jwt.WithValidMethods([]string{key.method.Alg()}), jwt.WithAudience(Audience), jwt.WithExpirationRequired(),
			jwt.WithIssuedAt(), jwt.WithLeeway(leeway), jwt.WithTimeFunc(v.now), jwt.WithStrictDecoding(),
		)
		var c claims
		parsed, err := parser.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return key.verify(), nil })
		switch {
		case errors.Is(err, jwt.ErrTokenMalformed): // package jwt reads the claims before it looks at the signature
			if wrong := key.wrongClaim(token); wrong != nil {
				return Principal{}, wrong
			}
			continue
		case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenUnverifiable):
			continue
		case err != nil:
			return Principal{}, claimError(err)
		}
		return v.principal(parsed, c)
	}
	return Principal{}, errSignature
}

// claimTypes are the claims that claims has, and what they must be.
var claimTypes = []struct {
	name, must string
	is         func(any) bool
}{
	{"aud", "a text, or a list of texts", isTexts}, {"venue", "a text", isText}, {"scope", "a text", isText}, {"exp", "a number", isNumber},
	{"iat", "a number", isNumber}, {"nbf", "a number", isNumber}, {"sub", "a text", isText}, {"iss", "a text", isText}, {"jti", "a text", isText},
}

func isText(v any) bool   { _, ok := v.(string); return ok }
func isNumber(v any) bool { _, ok := v.(float64); return ok }
func isTexts(v any) bool {
	list, ok := v.([]any)
	return isText(v) || ok && !slices.ContainsFunc(list, func(v any) bool { return !isText(v) })
}

// wrongClaim says what is wrong with the claims of a token that cannot be read though the key has
// signed it. It returns nil where the key has not.
func (k key) wrongClaim(token string) error {
	given := jwt.MapClaims{}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{k.method.Alg()}), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation())
	if _, err := parser.ParseWithClaims(token, given, func(*jwt.Token) (any, error) { return k.verify(), nil }); err != nil {
		return nil //nolint:nilerr // another key may have signed it
	}
	for _, claim := range claimTypes {
		if v := given[claim.name]; v != nil && !claim.is(v) {
			return fmt.Errorf("the claim %s must be %s", claim.name, claim.must)
		}
	}
	return errors.New("the claims of the token cannot be read")
}

// principal returns the caller of a token whose signature, times and audience are valid.
func (v *Verifier) principal(token *jwt.Token, c claims) (Principal, error) {
	if _, ok := token.Header["crit"]; ok { // RFC 7515, section 4.1.11: none is understood
		return Principal{}, errors.New("the token has a field crit")
	}
	if c.ExpiresAt.After(v.now().Add(LongestToken + leeway)) {
		return Principal{}, fmt.Errorf("the token ends more than %.0f minutes ahead", LongestToken.Minutes())
	}
	if err := checkClaims(c.Venue, c.Scope); err != nil {
		return Principal{}, err
	}
	return Principal{role: RoleVenue, venue: c.Venue, scope: c.Scope, subject: printable(c.Subject), expires: c.ExpiresAt.Time}, nil
}

// claimError says in plain words what is wrong with the claims of a token that a key has signed.
func claimError(err error) error {
	for _, known := range []struct {
		err  error
		text string
	}{
		{jwt.ErrTokenExpired, "the token has ended; sign a new one"},
		{jwt.ErrTokenNotValidYet, "the token is not valid yet; compare the clocks"},
		{jwt.ErrTokenUsedBeforeIssued, "the token was signed in the future; compare the clocks"},
		{jwt.ErrTokenInvalidAudience, "the claim aud must be " + Audience},
		{jwt.ErrTokenRequiredClaimMissing, "a claim is missing; a token needs aud, exp, venue and scope"},
	} {
		if errors.Is(err, known.err) {
			return errors.New(known.text)
		}
	}
	return errors.New("the claims of the token cannot be read")
}

// printable keeps control characters, and more than a line, out of the log.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > maxSubjectLength {
		s = strings.ToValidUTF8(s[:maxSubjectLength], "")
	}
	return s
}
