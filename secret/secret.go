// Package secret holds a text that cannot be printed by accident (Text), and the keys that seal it for storage (Keyring).
//
// Connection URLs, endpoint secrets and the admin token travel through configuration, errors, logs and
// JSON. Whatever prints a Text, by any verb of fmt, by slog, by encoding/json or by a text encoder, prints
// [redacted]; the only way to the value is a call of Reveal, which is easy to search for in review.
package secret

import (
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// Text is a secret string. The zero value is the empty secret. Texts are compared with Equal, not with ==.
//
// It holds a pointer because fmt calls no method on an unexported field of another struct: it prints what
// the field holds, which here is an address.
type Text struct{ value *string }

// New makes a Text of value.
func New(value string) Text { return Text{&value} }

// Reveal returns the secret itself. Its result must not reach a log, an error, a metric or a page.
func (t Text) Reveal() string {
	if t.value == nil {
		return ""
	}
	return *t.value
}

// IsZero reports whether the secret is empty.
func (t Text) IsZero() bool { return t.Reveal() == "" }

// Equal reports whether both hold the same secret, in a time that depends on their lengths only.
func (t Text) Equal(u Text) bool {
	return subtle.ConstantTimeCompare([]byte(t.Reveal()), []byte(u.Reveal())) == 1
}

// String implements fmt.Stringer without the secret.
func (t Text) String() string { return redacted }

// GoString implements fmt.GoStringer without the secret.
func (t Text) GoString() string { return redacted }

// Format implements fmt.Formatter without the secret, for every verb and flag.
func (t Text) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer without the secret.
func (t Text) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, and with it JSON and TOML encoding, without the secret.
func (t Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }
