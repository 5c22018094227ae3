// Package secret has a text that cannot be printed by accident (Text), and the keys that seal it
// for storage (Keyring).
//
// Connection URLs, endpoint secrets and the admin token pass through configuration, errors, logs
// and JSON. Every way to print a Text prints [redacted]: each verb of fmt, slog, encoding/json and
// any text encoder. The only way to the value is Reveal, and a review can search for its calls.
package secret

import (
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// Text is a secret string. The zero value is the empty secret. Compare Texts with Equal, not with
// ==.
//
// It holds a pointer because fmt calls no method on an unexported field of another struct. It
// prints what the field holds, and here that is an address.
type Text struct{ value *string }

// New returns a Text that holds value.
func New(value string) Text { return Text{&value} }

// Reveal returns the secret. The result must not get into a log, an error, a metric or a page.
func (t Text) Reveal() string {
	if t.value == nil {
		return ""
	}
	return *t.value
}

// IsZero reports whether the secret is empty.
func (t Text) IsZero() bool { return t.Reveal() == "" }

// Equal reports whether both hold the same secret. Its duration depends on their lengths only.
func (t Text) Equal(u Text) bool {
	return subtle.ConstantTimeCompare([]byte(t.Reveal()), []byte(u.Reveal())) == 1
}

// String implements fmt.Stringer and hides the secret.
func (t Text) String() string { return redacted }

// GoString implements fmt.GoStringer and hides the secret.
func (t Text) GoString() string { return redacted }

// Format implements fmt.Formatter and hides the secret, for every verb and flag.
func (t Text) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer and hides the secret.
func (t Text) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, and so JSON and TOML encoding, and hides the
// secret.
func (t Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }
