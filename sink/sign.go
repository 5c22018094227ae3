package sink

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/quintago/webhook-agent/secret"
)

// The headers of a signed request, in net/http's canonical spelling.
const (
	HeaderSignature         = "X-Quintago-Signature"          // sha256=<hex>, as in the customer documentation
	HeaderSignaturePrevious = "X-Quintago-Signature-Previous" // the same with the newest former secret
	HeaderID                = "Webhook-Id"                    // the event id, the same on every attempt
	HeaderTimestamp         = "Webhook-Timestamp"             // Unix seconds of the attempt
	HeaderStandardSignature = "Webhook-Signature"             // v1,<base64>, several separated by spaces
	HeaderTest              = "Webhook-Test"                  // true on a sample, else absent
	HeaderTraceparent       = "traceparent"                   // W3C Trace Context; only where the event has one
)

const (
	quintagoPrefix = "sha256="
	standardPrefix = "v1,"
	secretPrefix   = "whsec_"

	// Standard Webhooks asks for decoded keys of this length.
	minKeyBytes = 24
	maxKeyBytes = 64
)

// Sign sets the signature headers of both schemes on h. It signs body for an attempt at the time
// at:
//
//   - X-Quintago-Signature is an HMAC-SHA256 of the body alone. The key is the secret's bytes as
//     written.
//   - Webhook-Signature is that of Standard Webhooks 1.0.0
//     (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md):
//     an HMAC-SHA256 of id, timestamp and body. The key of a whsec_ secret is its decoded form, and
//     of any other the secret as written.
//
// former are the former secrets, the newest first. Each adds an entry to Webhook-Signature, and the
// newest also signs X-Quintago-Signature-Previous. Empty ones are ignored.
//
// Sign fails if CheckSecret refuses one of the secrets, and then leaves h unchanged. The event id
// must be one that Attempt sends.
func Sign(h http.Header, eventID string, at time.Time, body []byte, current secret.Text, former ...secret.Text) error {
	key, err := parseSecret(current)
	if err != nil {
		return err
	}
	keys := []*signingKey{&key}
	for _, s := range former {
		if s.IsZero() {
			continue
		}
		key, err := parseSecret(s)
		if err != nil {
			return fmt.Errorf("former secret: %w", err)
		}
		keys = append(keys, &key)
	}
	r := Request{EventID: eventID, At: at, Body: body, keys: keys}
	for line := range strings.SplitSeq(string(r.appendSignatures(nil, &key)[len("\r\n"):]), "\r\n") {
		name, value, _ := strings.Cut(line, ": ")
		h[name] = []string{value}
	}
	return nil
}

// CheckSecret says in one sentence why an endpoint's secret is not usable, or returns nil. The
// sentence holds no part of the secret. After whsec_ a secret must be standard padded base64 of 24
// to 64 bytes that are not all alike. Any other secret must not be empty, and must not look like a
// misspelled whsec_ secret. None may be in quotes or between blanks, or hold invisible characters.
func CheckSecret(s secret.Text) error {
	_, err := parseSecret(s)
	return err
}

// StandardSecret returns the form of a secret that libraries of Standard Webhooks take. They decode
// everything they are given. So a whsec_ secret stays as it is, and any other becomes whsec_ and
// the base64 of its bytes. It fails if CheckSecret refuses the secret.
func StandardSecret(s secret.Text) (secret.Text, error) {
	key, err := parseSecret(s)
	if err != nil {
		return secret.Text{}, err
	}
	return secret.New(secretPrefix + base64.StdEncoding.EncodeToString(key.standard)), nil
}

// GenerateSecret returns a new random secret: whsec_ and the base64 of 32 bytes.
func GenerateSecret() secret.Text {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails: crypto/rand ends the process instead of returning an error
	return secret.New(secretPrefix + base64.StdEncoding.EncodeToString(key))
}

// signingKey holds the keys of one secret, one for each scheme.
type signingKey struct {
	quintago []byte // the secret as written
	standard []byte // decoded if the secret has the whsec_ form
}

// is reports whether two keys come from the same secret.
func (k *signingKey) is(other *signingKey) bool { return bytes.Equal(k.quintago, other.quintago) }

// parseSecret returns the keys of a secret. Its errors contain positions and lengths, but no part
// of the secret.
func parseSecret(s secret.Text) (signingKey, error) {
	if s.IsZero() {
		return signingKey{}, errors.New("the secret is empty")
	}
	if err := checkSpelling(s.Reveal()); err != nil {
		return signingKey{}, err
	}
	text := []byte(s.Reveal())
	encoded, ok := strings.CutPrefix(s.Reveal(), secretPrefix)
	if !ok {
		return signingKey{quintago: text, standard: text}, nil
	}

	notBase64 := func(at int) error {
		return fmt.Errorf("the secret begins with whsec_ but is not standard base64 at character %d", len(secretPrefix)+at+1)
	}
	// The decoder skips line breaks, but checkSpelling has refused them, so two different texts are
	// never the same key.
	decoded, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		corrupt, _ := errors.AsType[base64.CorruptInputError](err) // there is no other error
		return signingKey{}, notBase64(int(corrupt))
	}
	if len(decoded) < minKeyBytes || len(decoded) > maxKeyBytes {
		return signingKey{}, fmt.Errorf("a whsec_ secret must hold %d to %d bytes, this one holds %d",
			minKeyBytes, maxKeyBytes, len(decoded))
	}
	if bytes.Count(decoded, decoded[:1]) == len(decoded) {
		return signingKey{}, errors.New("the whsec_ secret repeats one byte; use a random one")
	}
	return signingKey{quintago: text, standard: decoded}, nil
}

// checkSpelling refuses a text that was probably meant to be another one. With it the key would be
// wrong, and nothing else would show that.
func checkSpelling(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("the secret is no text in UTF-8, and the database stores nothing else; use a random one of letters and digits")
	}
	if strings.TrimSpace(s) != s {
		return errors.New("the secret begins or ends with a blank; write it without")
	}
	if at := strings.IndexFunc(s, isInvisible); at >= 0 {
		return fmt.Errorf("the secret has a line break or an invisible character at character %d; write it without",
			utf8.RuneCountInString(s[:at])+1)
	}
	if standsInQuotes(s) {
		return errors.New("the secret stands in quotes or has one at an end; write it without")
	}
	switch folded := fold(s); {
	case strings.HasPrefix(s, secretPrefix):
		return nil
	case strings.HasPrefix(strings.ToLower(s), secretPrefix):
		return errors.New("the secret begins with whsec_ in capital letters; write it in small ones")
	case strings.Contains(folded, "whsec"):
		return errors.New("the secret has whsec in it but does not begin with whsec_; write it from whsec_ on, with nothing before or in it")
	case resemblesPrefix(folded, s):
		return errors.New("the secret begins with what looks like whsec_ but is not; write whsec_")
	case strings.Contains(folded, "whsk_"), strings.Contains(folded, "whpk_"):
		return errors.New("the secret is a key of the asymmetric scheme of Standard Webhooks, which is not offered; use one that begins with whsec_")
	case strings.HasPrefix(folded, "env:"), strings.HasPrefix(folded, "file:"):
		return errors.New("the secret begins as a reference does, which is followed only in the configuration file and in --secret, " +
			"and only as env:NAME or file:/path in small letters; give the secret itself")
	}
	return nil
}

// isInvisible reports whether a rune is a line break, a control character or a format character,
// such as a byte order mark.
func isInvisible(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) }

// standsInQuotes reports whether a text begins and ends with the same quote, has a quote at one end
// and no other of its kind, or has a typographic quote at one end. Quotes inside a text are
// allowed.
func standsInQuotes(s string) bool {
	first, _ := utf8.DecodeRuneInString(s)
	last, size := utf8.DecodeLastRuneInString(s)
	if unicode.In(first, unicode.Pi, unicode.Pf) || unicode.In(last, unicode.Pi, unicode.Pf) || first == '„' || first == '‚' {
		return true
	}
	alone := func(r rune) bool { return isQuote(r) && strings.Count(s, string(r)) == 1 }
	return alone(first) || alone(last) || first == last && isQuote(first) && len(s) > size
}

func isQuote(r rune) bool { return r == '"' || r == '\'' || r == '`' }

// fold returns a text in small letters and without accents. A letter that looks like one of whsec_
// becomes that letter.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Mn, r) {
			return -1
		}
		r = unicode.ToLower(r)
		if latin, ok := lookAlikes[r]; ok {
			return latin
		}
		return r
	}, norm.NFKD.String(s))
}

// lookAlikes are the Cyrillic letters that look like those of whsec_. A keyboard with two alphabets
// can type them.
var lookAlikes = map[rune]rune{'ԝ': 'w', 'һ': 'h', 'ѕ': 's', 'е': 'e', 'с': 'c'}

// resemblesPrefix reports whether a text is a key in base64 after a word that is one mistake away
// from whsec: a letter left out, added or changed, or two letters swapped.
func resemblesPrefix(folded, s string) bool {
	word, _, found := cutWord(folded)
	_, rest, _ := cutWord(s)
	if key, err := base64.StdEncoding.DecodeString(rest); !found || err != nil || len(key) < minKeyBytes {
		return false
	}
	want := []rune("whsec")
	got := []rune(word)
	for len(got) > 0 && len(want) > 0 && got[0] == want[0] {
		got, want = got[1:], want[1:]
	}
	for len(got) > 0 && len(want) > 0 && got[len(got)-1] == want[len(want)-1] {
		got, want = got[:len(got)-1], want[:len(want)-1]
	}
	return len(got) <= 1 && len(want) <= 1 || len(got) == 2 && len(want) == 2 && got[0] == want[1] && got[1] == want[0]
}

// cutWord returns the letters at the beginning of a text, and what follows the character that ends
// them.
func cutWord(s string) (word, rest string, found bool) {
	at := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsLetter(r) })
	if at < 0 {
		return s, "", false
	}
	_, size := utf8.DecodeRuneInString(s[at:])
	return s[:at], s[at+size:], true
}

// signQuintago returns the value of X-Quintago-Signature.
func (k *signingKey) signQuintago(body []byte) string { return string(k.appendQuintago(nil, body)) }

func (k *signingKey) appendQuintago(b, body []byte) []byte {
	mac := newMac(k.quintago)
	mac.Write(body)
	sum := mac.end()
	return hex.AppendEncode(append(b, quintagoPrefix...), sum[:])
}

// signStandard returns one entry of Webhook-Signature.
func (k *signingKey) signStandard(eventID, timestamp string, body []byte) string {
	return string(k.appendStandard(nil, eventID, []byte(timestamp), body))
}

func (k *signingKey) appendStandard(b []byte, eventID string, timestamp, body []byte) []byte {
	mac := newMac(k.standard)
	b = append(b, standardPrefix...)
	at := len(b)
	b = append(b, eventID...)
	b = append(b, '.')
	b = append(b, timestamp...)
	b = append(b, '.')
	mac.Write(b[at:])
	mac.Write(body)
	sum := mac.end()
	return base64.StdEncoding.AppendEncode(b[:at], sum[:])
}
