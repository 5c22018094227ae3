package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// SealedPrefix begins a sealed text: sealed:v1:KEY:BASE64, where KEY names the key and BASE64 (RFC 4648, section 4, without padding) is
// the nonce, the ciphertext and the tag of AES-256-GCM (NIST SP 800-38D).
const SealedPrefix = "sealed:v1:"

// KeyBytes is the length of a key of a Keyring.
const KeyBytes = 32

// Keyring seals secrets for storage and opens them again. What it seals is bound to its owner, so that a sealed secret in another
// owner's row opens to nothing. It protects what is stored where the keys are not: dumps, standbys, backups.
//
// The zero Keyring has no keys: it seals nothing and opens only what is not sealed. A Keyring may be used by any number of goroutines.
type Keyring struct{ keys []*key } // the first one seals, all open

type key struct {
	id   string // the first four bytes, in hexadecimal, of the SHA-256 of what it names and the key
	aead cipher.AEAD
}

// ErrNoKey reports that a secret is sealed with a key that the Keyring does not have.
var ErrNoKey = errors.New("is not among security.keys")

// NewKeyring makes a Keyring of keys in hexadecimal. Its errors number the keys from one and hold no part of them.
func NewKeyring(hexKeys []Text) (Keyring, error) {
	var (
		ring Keyring
		errs []error
	)
	for i, text := range hexKeys {
		raw, err := hex.DecodeString(text.Reveal())
		if err != nil || len(raw) != KeyBytes {
			errs = append(errs, fmt.Errorf("key %d must have %d hexadecimal digits; make one with: openssl rand -hex %d", i+1, 2*KeyBytes, KeyBytes))
			continue
		}
		k := newKey(raw)
		if ring.find(k.id) != nil {
			errs = append(errs, fmt.Errorf("key %d is there twice", i+1))
			continue
		}
		ring.keys = append(ring.keys, k)
	}
	return ring, errors.Join(errs...)
}

func newKey(raw []byte) *key {
	block, err := aes.NewCipher(raw)
	if err != nil {
		panic(err) // it refuses lengths only
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // it refuses ciphers of other block sizes only
	}
	sum := sha256.Sum256(append([]byte("webhook-agent key id:"), raw...))
	return &key{hex.EncodeToString(sum[:4]), aead}
}

// Format implements fmt.Formatter without the keys, for every verb and flag.
func (r Keyring) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "[%d keys]", len(r.keys)) }

func (r Keyring) find(id string) *key {
	for _, k := range r.keys {
		if k.id == id {
			return k
		}
	}
	return nil
}

// Seals reports whether the Keyring has a key to seal with.
func (r Keyring) Seals() bool { return len(r.keys) > 0 }

// Has reports whether the Keyring has the key of this name, as it stands in sealed texts.
func (r Keyring) Has(keyID string) bool { return r.find(keyID) != nil }

// IsFirst reports whether the key of this name is the one to seal with.
func (r Keyring) IsFirst(keyID string) bool { return r.Seals() && r.keys[0].id == keyID }

// Seal seals a secret of an owner. An empty secret stays as it is, and so does everything without a key.
func (r Keyring) Seal(owner string, s Text) Text {
	if !r.Seals() || s.IsZero() {
		return s
	}
	sealed := r.keys[0].aead.Seal(nil, nil, []byte(s.Reveal()), boundTo(owner))
	return New(SealedPrefix + r.keys[0].id + ":" + base64.RawStdEncoding.EncodeToString(sealed))
}

// Open returns the secret of an owner that a stored text holds: the text itself where it is not sealed. The error says in one sentence
// why it cannot be had, and wraps ErrNoKey when a key is missing.
func (r Keyring) Open(owner string, stored Text) (Text, error) {
	id, sealed, ok := parseSealed(stored)
	if !ok {
		return stored, nil
	}
	k := r.find(id)
	if k == nil {
		return Text{}, fmt.Errorf("the secret is sealed with key %s, which %w", KeyName(id), ErrNoKey)
	}
	raw, err := base64.RawStdEncoding.Strict().DecodeString(sealed)
	if err == nil {
		raw, err = k.aead.Open(nil, nil, raw, boundTo(owner))
	}
	if err != nil {
		return Text{}, errors.New("the sealed secret is damaged, or was sealed for another endpoint; set a new secret")
	}
	return New(string(raw)), nil
}

// Outdated reports whether a stored text of an owner is to be sealed anew: it holds a secret, and is not sealed with the first key.
// It is false for what cannot be opened, and without keys.
func (r Keyring) Outdated(owner string, stored Text) bool {
	if id, _, _ := parseSealed(stored); !r.Seals() || stored.IsZero() || r.IsFirst(id) {
		return false
	}
	_, err := r.Open(owner, stored)
	return err == nil
}

// parseSealed takes a sealed text apart; ok is false when it is not sealed.
func parseSealed(stored Text) (id, sealed string, ok bool) {
	rest, ok := strings.CutPrefix(stored.Reveal(), SealedPrefix)
	if !ok {
		return "", "", false
	}
	id, sealed, _ = strings.Cut(rest, ":")
	return id, sealed, true
}

// KeyName returns the name of a key as it stands in a sealed text, if it looks like one: the text is whatever somebody has written.
func KeyName(id string) string {
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 4 {
		return "of no name"
	}
	return id
}

// boundTo is the additional data that the tag covers.
func boundTo(owner string) []byte { return []byte("webhook-agent secret of " + owner) }
