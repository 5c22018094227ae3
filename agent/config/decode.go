package config

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/quintago/webhook-agent/secret"
)

// decoder fills a Config from a TOML document. It collects all problems instead of stopping at the
// first. The toml package parses the document; the decoder then decodes its Primitives key by key.
type decoder struct {
	meta     toml.MetaData
	getenv   func(string) string
	problems *problemList
	literal  string // a key whose secret is written in the file itself; "" when there is none
	// replaced are the keys whose values here are not used, since a flag or a variable sets them
	// too. A secret that such a value refers to is not read: it may be missing for this user or on
	// this host.
	replaced map[string]string
}

// file sets the values of cfg from the keys of text, and adds a problem for each key that is unknown
// or cannot be read. Such a key keeps its former value. It reports whether the text is TOML.
func (d *decoder) file(cfg *Config, text string) bool {
	var keys map[string]toml.Primitive
	meta, err := toml.Decode(text, &keys)
	if err != nil {
		d.problems.addTo(d.problems.path, syntaxProblem(err))
		return false
	}
	d.meta = meta
	d.table("", keys, reflect.ValueOf(cfg).Elem())
	return true
}

// tomlQuotes matches what the messages of the toml package quote from the document.
var tomlQuotes = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'[^']*'`)

// syntaxProblem describes a parse error. The message may quote a secret, such as a value that lost
// its quotes. So every quote longer than one character is hidden.
func syntaxProblem(err error) string {
	parse, ok := errors.AsType[toml.ParseError](err)
	if !ok {
		return "the file is not valid TOML"
	}
	message := tomlQuotes.ReplaceAllStringFunc(parse.Message, func(q string) string {
		if len(q) > len(`"x"`) {
			return "(hidden)"
		}
		return q
	})
	near := ""
	if parse.LastKey != "" {
		near = fmt.Sprintf(" (last key %s)", parse.LastKey)
	}
	return fmt.Sprintf("line %d is not valid TOML%s: %s", parse.Position.Line, near, strings.TrimSuffix(message, "."))
}

// table fills the struct target from the keys of one table. prefix comes before each key in
// sentences.
func (d *decoder) table(prefix string, keys map[string]toml.Primitive, target reflect.Value) {
	fields := map[string]reflect.Value{}
	for i := range target.NumField() {
		fields[target.Type().Field(i).Tag.Get("toml")] = target.Field(i)
	}
	delete(fields, "-") // a field without a key
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		field, known := fields[key]
		if !known {
			d.decode(prefix+key, keys[key], func(v any) error {
				if text, ok := v.(string); ok {
					noteReference(text, d.getenv)
				}
				return fmt.Errorf("unknown key; did you mean %s?", nearestKey(prefix+key))
			})
			continue
		}
		d.field(prefix+key, keys[key], field)
	}
}

// field decodes one key: a table, the list of endpoints, or a value.
func (d *decoder) field(name string, value toml.Primitive, target reflect.Value) {
	if endpoints, ok := target.Addr().Interface().(*[]Endpoint); ok {
		d.problems.sources[name] = d.problems.path
		var tables []map[string]toml.Primitive
		d.split(name, value, &tables, isA[[]map[string]any]("a list of tables, each written [["+name+"]]"))
		*endpoints = make([]Endpoint, len(tables))
		for i, keys := range tables {
			d.table(fmt.Sprintf("%s[%d].", name, i+1), keys, reflect.ValueOf(&(*endpoints)[i]).Elem())
		}
		return
	}
	if isTable(target.Type()) {
		var keys map[string]toml.Primitive
		d.split(name, value, &keys, isA[map[string]any]("a table, written ["+name+"]"))
		d.table(name+".", keys, target)
		return
	}
	d.problems.sources[name] = d.problems.path
	d.decode(name, value, func(v any) error { return d.set(name, target.Addr().Interface(), v) })
}

// secret returns a function that reads a secret or a reference to one. It notes a secret that is
// written in the file itself. A URL is such a secret when it has a password.
func (d *decoder) secret(name string) func(string) (secret.Text, error) {
	return func(text string) (secret.Text, error) {
		refers := strings.HasPrefix(text, "env:") || strings.HasPrefix(text, "file:")
		if text != "" && !refers && (!strings.HasSuffix(name, "url") || hasPassword(text)) {
			d.literal = name
		}
		if _, replaced := d.replaced[name]; replaced {
			noteReference(text, d.getenv)
			return secret.Text{}, nil
		}
		return ResolveSecret(text, d.getenv)
	}
}

// hasPassword reports whether a URL, or key=value words as PostgreSQL takes them, has a password.
func hasPassword(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" {
		return strings.Contains(text, "password")
	}
	_, has := u.User.Password()
	return has
}

// split decodes a table, or a list of tables, into Primitives. It checks the type first, because
// the toml package makes an empty table from any other value, without an error.
func (d *decoder) split(name string, value toml.Primitive, target any, check func(any) error) {
	d.decode(name, value, check)
	// A table always fits; any other value leaves target empty.
	_ = d.meta.PrimitiveDecode(value, target)
}

// isA returns a check that a TOML value has the type T.
func isA[T any](want string) func(any) error {
	return func(v any) error {
		var value T
		return assign(&value, v, want)
	}
}

// set stores the TOML value v of a key in target, a pointer to a field of Config.
func (d *decoder) set(name string, target, v any) (err error) {
	switch target := target.(type) {
	case *string:
		err = assign(target, v, "text in quotes")
	case *bool:
		err = assign(target, v, "true or false")
	case *int:
		n := int64(*target)
		err = assign(&n, v, "a whole number")
		*target = int(n)
	case *float64:
		*target, err = parseNumber(v)
	case *[]string:
		err = parseList(target, v, "a list of texts", func(s string) (string, error) { return s, nil })
	case *time.Duration:
		err = parseText(target, v, `a duration in quotes, such as "15s"`, ParseDuration)
	case *[]time.Duration:
		err = parseList(target, v, `a list of durations in quotes, such as ["5s", "2m"]`, parseWait)
	case *ByteSize:
		err = parseText(target, v, `a size in quotes, such as "64MiB"`, parseByteSize)
	case *slog.Level:
		err = parseText(target, v, "text in quotes", parseLevel)
	case *[]netip.Prefix:
		err = parseList(target, v, `a list of networks in quotes, such as ["10.20.0.0/16"]`, parseNetwork)
	case *[]secret.Text:
		err = parseList(target, v, "a list of texts", d.secret(name))
	case *secret.Text:
		err = parseText(target, v, "text in quotes", d.secret(name))
	default:
		panic(fmt.Sprintf("no TOML form for a field of type %T", target))
	}
	return err
}

// assign stores v when it has the type T. The error does not quote the value, because it may be a
// secret.
func assign[T any](target *T, v any, want string) error {
	value, ok := v.(T)
	if !ok {
		return fmt.Errorf("must be %s", want)
	}
	*target = value
	return nil
}

// parseNumber returns a number, with a fraction or without.
func parseNumber(v any) (float64, error) {
	switch n := v.(type) {
	case float64:
		return n, nil
	case int64:
		return float64(n), nil
	}
	return 0, errors.New("must be a number, such as 0.01")
}

// parseText parses the text v and stores the result.
func parseText[T any](target *T, v any, want string, parse func(string) (T, error)) error {
	var text string
	if err := assign(&text, v, want); err != nil {
		return err
	}
	value, err := parse(text)
	if err != nil {
		return err
	}
	*target = value
	return nil
}

// parseList parses each text of the list v and stores the results. Its error has all texts that
// cannot be parsed.
func parseList[T any](target *[]T, v any, want string, parse func(string) (T, error)) error {
	var items []any
	if err := assign(&items, v, want); err != nil {
		return err
	}
	values := make([]T, len(items))
	var errs []error
	for i, item := range items {
		errs = append(errs, parseText(&values[i], item, want, parse))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	*target = values
	return nil
}

func parseLevel(text string) (level slog.Level, err error) {
	for _, level = range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if text == strings.ToLower(level.String()) {
			return level, nil
		}
	}
	return 0, fmt.Errorf("%s is not one of debug, info, warn, error", Quoted(text))
}

func parseNetwork(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return p, fmt.Errorf("%s is not a network in CIDR form, such as 10.20.0.0/16", Quoted(text))
	case p != p.Masked():
		return p, fmt.Errorf("%s has bits behind its mask; did you mean %s?", Quoted(text), p.Masked())
	}
	return p, nil
}

// decode calls set with a value, and adds its error as a problem with the line of the key. The toml
// package gives that line only in the error of an Unmarshaler. For the keys of endpoints it gives
// the line of the last one, because their names repeat. So these problems have no line.
func (d *decoder) decode(name string, value toml.Primitive, set func(any) error) {
	var problem error
	err := d.meta.PrimitiveDecode(value, unmarshaler(func(v any) error {
		problem = set(v)
		return problem
	}))
	if problem == nil {
		return
	}
	where := name
	if parse, ok := errors.AsType[toml.ParseError](err); ok && parse.Position.Line > 0 && !strings.Contains(name, "[") {
		where = fmt.Sprintf("line %d: %s", parse.Position.Line, name)
	}
	d.problems.each(where, problem)
	d.problems.unreadable[name] = true
}

// unmarshaler is a function as a toml.Unmarshaler.
type unmarshaler func(any) error

// UnmarshalTOML implements toml.Unmarshaler.
func (u unmarshaler) UnmarshalTOML(v any) error { return u(v) }

// configKeys returns the keys of the struct type t and of the structs within it, each with prefix
// and dots before it. A list of tables counts as one table.
func configKeys(t reflect.Type, prefix string) []string {
	var keys []string
	for i := range t.NumField() {
		field := t.Field(i)
		if field.Tag.Get("toml") == "-" {
			continue
		}
		key := prefix + field.Tag.Get("toml")
		keys = append(keys, key)
		inner := field.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if isTable(inner) {
			keys = append(keys, configKeys(inner, key+".")...)
		}
	}
	return keys
}

// nearestKey returns the key of Config that is most like name. The last word counts three times. So
// a key in the wrong table leads to the right table.
func nearestKey(name string) string {
	lastWord := func(key string) string { return key[strings.LastIndex(key, ".")+1:] }
	distance := func(key string) int {
		return editDistance(name, key) + 2*editDistance(lastWord(name), lastWord(key))
	}
	return slices.MinFunc(configKeys(reflect.TypeFor[Config](), ""), func(a, b string) int {
		return cmp.Compare(distance(a), distance(b))
	})
}

// Nearest returns the one of known that is most like name, or "" if none is like it: at most a third
// of its letters differ.
func Nearest(name string, known []string) string {
	if len(known) == 0 {
		return ""
	}
	nearest := closest(name, known)
	if editDistance(name, nearest) > max(2, len(name)/3) {
		return ""
	}
	return nearest
}

// closest returns the one of known from which the fewest letters of name differ.
func closest(name string, known []string) string {
	return slices.MinFunc(known, func(a, b string) int { return cmp.Compare(editDistance(name, a), editDistance(name, b)) })
}

// editDistance returns the number of bytes to insert, remove or replace to turn a into b
// (Levenshtein distance). It uses the method of Wagner and Fischer (1974) with one row.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0] // the cell of the row above, one to the left
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
