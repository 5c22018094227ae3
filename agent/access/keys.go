package access

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
)

const (
	// LongestToken is the longest life of a venue's token.
	LongestToken = 15 * time.Minute
	// Audience is the claim aud of a venue's token.
	Audience = "webhook-agent"
	// minKeyLength is the least length of a key of HS256, in bytes: that of its hash (RFC 7518,
	// section 3.2).
	minKeyLength = 32
	// maxVenueLength is the greatest length of the claim venue, in bytes.
	maxVenueLength = 200
	// ed25519Prefix begins a public key of Ed25519 in console.keys. Base64 follows.
	ed25519Prefix = "ed25519:"
)

// key is a key of console.keys with the one algorithm that it verifies.
type key struct {
	method jwt.SigningMethod
	// verify returns a []byte or an ed25519.PublicKey, as package jwt wants it. It is a function, so that
	// no way of printing shows the key.
	verify func() any
}

// Keys are the keys that venues' tokens are signed with. The zero value verifies nothing.
type Keys struct{ keys []key }

// NewKeys reads console.keys. A key is a text of at least 32 bytes that the app shares (HS256), or
// ed25519: and the base64 of a public key (EdDSA). The error has one line for each key that is
// neither, and quotes none.
func NewKeys(texts []secret.Text) (keys Keys, err error) {
	var problems []error
	for i, text := range texts {
		k, err := newKey(text.Reveal())
		if err != nil {
			problems = append(problems, fmt.Errorf("key %d %w", i+1, err))
			continue
		}
		keys.keys = append(keys.keys, k)
	}
	return keys, errors.Join(problems...)
}

func newKey(text string) (key, error) {
	if encoded, ok := strings.CutPrefix(text, ed25519Prefix); ok {
		public, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || len(public) != ed25519.PublicKeySize {
			return key{}, fmt.Errorf("begins with %s, but what follows is not the base64 of a public key of %d bytes", ed25519Prefix, ed25519.PublicKeySize)
		}
		return key{jwt.SigningMethodEdDSA, func() any { return ed25519.PublicKey(public) }}, nil
	}
	if len(text) < minKeyLength {
		return key{}, fmt.Errorf("has %d bytes, must have at least %d; make one with: openssl rand -hex 32", len(text), minKeyLength)
	}
	if strings.Contains(text, "-----BEGIN") {
		return key{}, fmt.Errorf("is a PEM file; write a public key of Ed25519 as %s and the base64 of its last %d bytes", ed25519Prefix, ed25519.PublicKeySize)
	}
	return key{jwt.SigningMethodHS256, func() any { return []byte(text) }}, nil
}

// Empty reports whether there is no key.
func (k Keys) Empty() bool { return len(k.keys) == 0 }

// claims are what a venue's token says.
type claims struct {
	jwt.RegisteredClaims
	Venue string `json:"venue"`
	Scope Scope  `json:"scope"`
}

// ErrCannotSign is returned by Mint when no key can sign.
var ErrCannotSign = errors.New("console.keys has no shared key to sign with; add one of at least 32 bytes, or sign with the private key where it is")

// Mint signs a token as the app does, with the first shared key. It is for trying out and for
// support.
func (k Keys) Mint(venue string, scope Scope, life time.Duration, now time.Time) (secret.Text, error) {
	if err := checkClaims(venue, scope); err != nil {
		return secret.Text{}, err
	}
	for _, key := range k.keys {
		if key.method != jwt.SigningMethodHS256 {
			continue
		}
		text, err := jwt.NewWithClaims(key.method, claims{
			RegisteredClaims: jwt.RegisteredClaims{
				Audience: jwt.ClaimStrings{Audience}, Subject: "webhook-agent token",
				IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(life)),
			},
			Venue: venue, Scope: scope,
		}).SignedString(key.verify())
		return secret.New(text), err
	}
	return secret.Text{}, ErrCannotSign
}

// checkClaims returns an error that says what is wrong with the venue or the scope of a token.
func checkClaims(venue string, scope Scope) error {
	if err := outbox.CheckVenue(venue); err != nil {
		return fmt.Errorf("the claim venue %w", err)
	}
	if len(venue) > maxVenueLength {
		return fmt.Errorf("the claim venue has more than %d bytes", maxVenueLength)
	}
	if strings.ContainsAny(venue, "*%") {
		return errors.New("the claim venue is a pattern; it must be the id of one venue")
	}
	if scope != ScopeRead && scope != ScopeManage {
		return fmt.Errorf("the claim scope must be %s or %s", ScopeRead, ScopeManage)
	}
	return nil
}
