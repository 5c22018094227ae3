package config

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/quintago/webhook-agent/secret"
)

// Day is the longest unit of a duration in the configuration.
const Day = 24 * time.Hour

// ParseDuration parses a Go duration that may begin with whole days: 90s, 30d, 1d12h.
func ParseDuration(text string) (time.Duration, error) {
	bad := fmt.Errorf("%s is not a duration like 15s, 2m, 24h or 30d", Quoted(text))
	days, rest, found := strings.Cut(text, "d")
	if !found {
		d, err := time.ParseDuration(text)
		if err != nil {
			return 0, bad
		}
		return d, nil
	}
	n, err := strconv.ParseUint(days, 10, 32)
	if err != nil || n > uint64(math.MaxInt64/Day) {
		return 0, bad
	}
	d := time.Duration(n) * Day
	if rest == "" {
		return d, nil
	}
	part, err := time.ParseDuration(rest)
	if err != nil || part < 0 || d+part < d {
		return 0, bad
	}
	return d + part, nil
}

// parseWait parses a wait between two attempts. It checks the bounds too, so that all faults of a
// list are reported at once.
func parseWait(text string) (time.Duration, error) {
	const least, most = time.Second, 7 * Day
	wait, err := ParseDuration(text)
	if err == nil && (wait < least || wait > most) {
		err = fmt.Errorf("%s must be between %s and %s", Quoted(text), FormatDuration(least), FormatDuration(most))
	}
	return wait, err
}

// FormatDuration formats d with its two largest units: 15s, 2m, 1h30m, 4d3h. Below a minute it uses
// fractions.
func FormatDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + FormatDuration(-d)
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return twoUnits(d, time.Minute, "m", time.Second, "s")
	case d < Day:
		return twoUnits(d, time.Hour, "h", time.Minute, "m")
	default:
		return twoUnits(d, Day, "d", time.Hour, "h")
	}
}

func twoUnits(d, large time.Duration, largeName string, small time.Duration, smallName string) string {
	text := fmt.Sprintf("%d%s", d/large, largeName)
	if rest := d % large / small; rest > 0 {
		text += fmt.Sprintf("%d%s", rest, smallName)
	}
	return text
}

// ByteSize is an amount of memory in bytes.
type ByteSize int64

// byteUnits are tried in this order by parsing and by printing. B comes last, because the other
// names end in B.
var byteUnits = []struct {
	name  string
	bytes ByteSize
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// parseByteSize parses a whole number with its unit: 64MiB.
func parseByteSize(text string) (ByteSize, error) {
	for _, unit := range byteUnits {
		number, found := strings.CutSuffix(text, unit.name)
		if !found {
			continue
		}
		// 32 bits of GiB fit into an int64.
		n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 32)
		if err == nil {
			return ByteSize(n) * unit.bytes, nil
		}
		break
	}
	return 0, fmt.Errorf("%s is not a size like 512KiB, 64MiB or 1GiB", Quoted(text))
}

// String returns the size in the largest unit that divides it.
func (b ByteSize) String() string {
	for _, unit := range byteUnits {
		if b >= unit.bytes && b%unit.bytes == 0 {
			return fmt.Sprintf("%d%s", b/unit.bytes, unit.name)
		}
	}
	return "0B"
}

// maxSecretFileBytes is far more than any password or key needs. It keeps the content of a wrong
// path, such as a log or a device, out of memory.
const maxSecretFileBytes = 64 << 10

// ResolveSecret resolves a reference, env:NAME or file:/path. It returns any other value as it is.
// It refuses what looks like a reference and is none, and what no setting can hold.
func ResolveSecret(value string, getenv func(string) string) (secret.Text, error) {
	text, err := followReference(value, getenv)
	if err != nil {
		return secret.Text{}, err
	}
	if s := text.Reveal(); !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\ufeff") {
		return secret.Text{}, errors.New("the value is no plain text in UTF-8, or has a zero byte or a byte order mark in it; write it without")
	}
	return text, nil
}

func followReference(value string, getenv func(string) string) (secret.Text, error) {
	if name, found := strings.CutPrefix(value, "env:"); found {
		text := getenv(name)
		if text == "" {
			return secret.Text{}, fmt.Errorf("the environment variable %s is not set", Quoted(name))
		}
		return secret.New(text), nil
	}
	if path, found := strings.CutPrefix(value, "file:"); found {
		return readSecretFile(path)
	}
	if lower := strings.ToLower(strings.TrimSpace(value)); strings.HasPrefix(lower, "env:") || strings.HasPrefix(lower, "file:") {
		return secret.Text{}, errors.New("the value looks like a reference; write env: or file: in small letters, with no blank before it")
	}
	return secret.New(value), nil
}

// noteReference looks up the variable that a value refers to, so that it counts as in use. The
// value is resolved elsewhere, or not at all.
func noteReference(value string, getenv func(string) string) {
	if name, found := strings.CutPrefix(value, "env:"); found {
		getenv(name)
	}
}

// readSecretFile reads a secret and removes the line breaks at its end. It refuses a file that
// every user of the machine can read. It accepts one that a group can read: a file of root:agent
// with mode 0640 is the usual way to give a service its secret.
func readSecretFile(path string) (secret.Text, error) {
	if !filepath.IsAbs(path) {
		return secret.Text{}, fmt.Errorf("file:%s must be an absolute path, such as file:/etc/quintago/token", path)
	}
	info, err := os.Stat(path)
	if err != nil {
		return secret.Text{}, fmt.Errorf("file %s cannot be read: %w", path, reason(err))
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return secret.Text{}, fmt.Errorf("%s is not a file", path)
	case mode.Perm()&0o007 != 0:
		return secret.Text{}, fmt.Errorf("file %s is open to all users (mode %04o); run chmod 600 %s", path, mode.Perm(), path)
	case info.Size() > maxSecretFileBytes:
		return secret.Text{}, fmt.Errorf("file %s has %d bytes, too many for a secret", path, info.Size())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return secret.Text{}, fmt.Errorf("file %s cannot be read: %w", path, reason(err))
	}
	value := strings.TrimRight(string(text), "\r\n")
	if value == "" {
		return secret.Text{}, fmt.Errorf("file %s is empty", path)
	}
	return secret.New(value), nil
}

// reason removes the operation and the path from a file error, because the sentence around it names
// both.
func reason(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}

// Quoted returns text in quotes, cut after 60 characters, so that a sentence stays on one line.
func Quoted(text string) string {
	const limit = 60
	if utf8.RuneCountInString(text) > limit {
		text = string([]rune(text)[:limit]) + "…"
	}
	return strconv.Quote(text)
}
