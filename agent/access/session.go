package access

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/secret"
)

const (
	// LongestSession is the longest life of a session.
	LongestSession = 24 * time.Hour
	// sessionPurpose is the purpose of the key and of what it seals. What is sealed for anything
	// else is no session.
	sessionPurpose = "webhook-agent console session"
	// sessionVersion is the version of sessionContent.
	sessionVersion = 1
	// maxSessionLength bounds what is opened, in bytes: a cookie has no more (RFC 6265, section
	// 6.1).
	maxSessionLength = 4096
)

// Errors of Sessions.Open.
var (
	// ErrNoSession reports that a text is no session of this agent, or no longer one, since a token
	// or a key was replaced.
	ErrNoSession = errors.New("this is no session of the console")
	// ErrSessionEnded reports that a session has ended.
	ErrSessionEnded = errors.New("the session has ended")
)

// Sessions seals callers into texts that a browser keeps, and opens them again. Nothing is stored
// in the agent: a session of one agent is one of every agent with the same token and keys. A
// browser can neither read nor change it.
type Sessions struct{ aead cipher.AEAD }

// NewSessions returns Sessions whose key comes from the operator's token and all keys of
// console.keys together (HKDF, RFC 5869), so that replacing one of them ends all sessions. If none
// of them is secret, since there are public keys alone, the key is random and the sessions end with
// the process.
func NewSessions(operator secret.Text, keys []secret.Text) *Sessions {
	var material []byte
	public := operator.IsZero()
	add := func(text string) { // the length keeps two lists apart that are the same text
		material = binary.BigEndian.AppendUint32(material, uint32(len(text)))
		material = append(material, text...)
	}
	add(operator.Reveal())
	texts := make([]string, len(keys))
	for i, key := range keys {
		texts[i] = key.Reveal()
		public = public && strings.HasPrefix(texts[i], ed25519Prefix)
	}
	// Agents may have the keys in another order while one is replaced.
	slices.Sort(texts)
	for _, text := range texts {
		add(text)
	}
	if public { // everybody may know all of it
		material = make([]byte, sha256.Size)
		_, _ = rand.Read(material) // never fails
	}
	return &Sessions{newSessionAEAD(material, sessionPurpose)}
}

// newSessionAEAD returns AES-256-GCM with a key for one purpose. Its nonces are random: 2^32
// sessions are safe, and no agent makes a part of that before a token is replaced.
func newSessionAEAD(material []byte, purpose string) cipher.AEAD {
	key, err := hkdf.Key(sha256.New, material, nil, purpose, 32)
	if err != nil {
		panic(err) // the lengths are constant
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

// sessionContent is what a session says. The names are short, since a browser sends them with each
// request.
type sessionContent struct {
	Version int    `json:"v"`
	Role    Role   `json:"r"`
	Venue   string `json:"n,omitempty"`
	Scope   Scope  `json:"c"`
	Subject string `json:"s,omitempty"`
	Ends    int64  `json:"e"` // seconds since 1970
}

// Seal returns a text that Open makes p from, until ends. It is safe in a cookie.
func (s *Sessions) Seal(p Principal, ends time.Time) (string, error) {
	content := sessionContent{sessionVersion, p.role, p.venue, p.scope, p.subject, ends.Unix()}
	if err := content.check(); err != nil {
		return "", fmt.Errorf("no session: %w", err)
	}
	plain, err := json.Marshal(content)
	if err != nil {
		return "", fmt.Errorf("no session: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(s.aead.Seal(nil, nil, plain, []byte(sessionPurpose))), nil
}

// Open returns the caller of a session, whose Expires is the session's end. The error is
// ErrNoSession or ErrSessionEnded.
func (s *Sessions) Open(text string, now time.Time) (Principal, error) {
	if len(text) > maxSessionLength || strings.ContainsAny(text, "\r\n") { // which package base64 passes over
		return Principal{}, ErrNoSession
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return Principal{}, ErrNoSession
	}
	plain, err := s.aead.Open(nil, nil, sealed, []byte(sessionPurpose))
	if err != nil {
		return Principal{}, ErrNoSession
	}
	// An agent of another version may have sealed it.
	var c sessionContent
	if json.Unmarshal(plain, &c) != nil || c.Version != sessionVersion || c.check() != nil {
		return Principal{}, ErrNoSession
	}
	ends := time.Unix(c.Ends, 0)
	switch {
	case !now.Before(ends):
		return Principal{}, ErrSessionEnded
	case ends.After(now.Add(LongestSession + leeway)): // the clocks differ, or a bound was lowered
		return Principal{}, ErrNoSession
	}
	return Principal{c.Role, c.Venue, c.Scope, c.Subject, ends}, nil
}

// check returns an error for a caller that no Verifier gives.
func (c sessionContent) check() error {
	switch c.Role {
	case RoleOperator:
		if c.Venue != "" || c.Scope != ScopeManage {
			return errors.New("it is not the operator's")
		}
		return nil
	case RoleVenue:
		return checkClaims(c.Venue, c.Scope)
	}
	return errors.New("the caller has no role")
}
