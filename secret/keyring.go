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

// SealedPrefix begins every sealed text. The format is sealed:v1:KEY:BASE64. KEY is the name of the
// key. BASE64 (RFC 4648, section 4, without padding) is the nonce, the ciphertext and the tag of
// AES-256-GCM (NIST SP 800-38D).
const SealedPrefix = "sealed:v1:"

// KeyBytes is the length of a Keyring's key in bytes.
const KeyBytes = 32

// Keyring seals secrets for storage and opens them again. It protects what is stored where the keys
// are not: dumps, standbys, backups. A sealed secret is bound to its owner, so it cannot be opened
// in the row of another owner.
//
// The zero Keyring has no keys. It seals nothing, and opens only what is not sealed. Any number of
// goroutines may use a Keyring at the same time.
type Keyring struct{ keys []*key } // the first key seals, all keys open

type key struct {
	id   string // hexadecimal of the first four bytes of the SHA-256 of a prefix and the key
	aead cipher.AEAD
}

// ErrNoKey means that a secret is sealed with a key that the Keyring does not have.
var ErrNoKey = errors.New("is not among security.keys")

// NewKeyring makes a Keyring from keys in hexadecimal. The error names every problem. It gives the
// number of a key, counted from one, and no part of it.
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
		panic(err) // the only error is a wrong length, and the length was checked
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // the only error is a wrong block size, and AES has the right one
	}
	sum := sha256.Sum256(append([]byte("webhook-agent key id:"), raw...))
	return &key{hex.EncodeToString(sum[:4]), aead}
}

// Format implements fmt.Formatter and hides the keys, for every verb and flag.
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

// Has reports whether the Keyring has a key with this name. Sealed texts hold the name.
func (r Keyring) Has(keyID string) bool { return r.find(keyID) != nil }

// IsFirst reports whether keyID is the name of the key that seals.
func (r Keyring) IsFirst(keyID string) bool { return r.Seals() && r.keys[0].id == keyID }

// Seal returns the secret of an owner in sealed form. It returns an empty secret unchanged, and
// every secret if the Keyring has no keys.
func (r Keyring) Seal(owner string, s Text) Text {
	if !r.Seals() || s.IsZero() {
		return s
	}
	sealed := r.keys[0].aead.Seal(nil, nil, []byte(s.Reveal()), boundTo(owner))
	return New(SealedPrefix + r.keys[0].id + ":" + base64.RawStdEncoding.EncodeToString(sealed))
}

// Open returns the secret that a stored text of an owner holds. A text that is not sealed is the
// secret itself. The error says in one sentence why the secret cannot be opened. It wraps ErrNoKey
// if a key is missing.
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

// Outdated reports whether a stored text of an owner should be sealed anew: it can be opened, and
// the first key has not sealed it. It is false for an empty text, and if the Keyring has no keys.
func (r Keyring) Outdated(owner string, stored Text) bool {
	if id, _, _ := parseSealed(stored); !r.Seals() || stored.IsZero() || r.IsFirst(id) {
		return false
	}
	_, err := r.Open(owner, stored)
	return err == nil
}

// parseSealed splits a sealed text into the name of its key and the base64. ok is false if it is
// not sealed.
func parseSealed(stored Text) (id, sealed string, ok bool) {
	rest, ok := strings.CutPrefix(stored.Reveal(), SealedPrefix)
	if !ok {
		return "", "", false
	}
	id, sealed, _ = strings.Cut(rest, ":")
	return id, sealed, true
}

// KeyName returns the name of a key for a message. A stored text may hold anything as its key's
// name. If it does not look like a name, KeyName returns "of no name" instead of repeating it.
func KeyName(id string) string {
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 4 {
		return "of no name"
	}
	return id
}

// boundTo returns the additional data that the tag of AES-GCM covers. It binds a sealed text to its
// owner.
func boundTo(owner string) []byte { return []byte("webhook-agent secret of " + owner) }
