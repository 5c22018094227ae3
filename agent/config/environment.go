package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
)

// The names in the environment that have a meaning of their own. Each key has a variable beside
// them: see Variable.
const (
	variablePrefix = "WEBHOOK_AGENT_"
	// PathVariable names the configuration file.
	PathVariable = variablePrefix + "CONFIG"
	// databaseURLVariable is what many programs call the database. It is used when nothing else names
	// one, so that an agent beside an app does not take the app's database in place of its own.
	databaseURLVariable = "DATABASE_URL"
	databaseURLFlag     = "--database-url"
)

// Variable returns the name of the environment variable that sets a key: delivery.timeout is
// WEBHOOK_AGENT_DELIVERY_TIMEOUT.
func Variable(key string) string {
	return variablePrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// environment holds the variables by their names. referred has the names that values refer to by
// env:NAME: they are free to choose, so they may look like a key that does not exist.
type environment struct {
	variables map[string]string
	referred  map[string]bool
}

// newEnvironment reads a list of name=value, as os.Environ returns it.
func newEnvironment(list []string) *environment {
	e := &environment{map[string]string{}, map[string]bool{}}
	for _, variable := range list {
		if name, value, found := strings.Cut(variable, "="); found {
			e.variables[name] = value
		}
	}
	return e
}

// get returns the value of a variable, and "" if it is not set.
func (e *environment) get(name string) string { return e.variables[name] }

// follow returns the value of a variable that a reference names.
func (e *environment) follow(name string) string {
	e.referred[name] = true
	return e.get(name)
}

// keys returns the keys that variables set, each with the name of its variable.
func (e *environment) keys() map[string]string {
	keys := map[string]string{}
	for _, key := range valueKeys() {
		if _, set := e.variables[Variable(key)]; set {
			keys[key] = Variable(key)
		}
	}
	return keys
}

// decode sets the values of cfg from the variables of keys, and adds a problem for each value that
// cannot be read.
func (e *environment) decode(cfg *Config, d *decoder) {
	eachValue("", reflect.ValueOf(cfg).Elem(), func(key string, field reflect.Value) {
		text, set := e.variables[Variable(key)]
		if !set {
			return
		}
		d.problems.sources[key] = Variable(key)
		d.problems.unreadable[key] = false
		err := outbox.CheckText(text)
		if err == nil {
			err = d.setText(key, field.Addr().Interface(), text)
		}
		if err != nil {
			d.problems.each(key, err)
			d.problems.unreadable[key] = true
		}
	})
}

// The forms in the environment of what has no characters.
const (
	emptyText = `""`
	emptyList = "[]"
)

// setText stores the text of a variable in target, a pointer to a field of Config. A variable
// without a value is an error. It mostly comes from another variable that is not set, and taking it
// for an empty list would remove keys and tokens in silence.
func (d *decoder) setText(key string, target any, text string) error {
	list := reflect.TypeOf(target).Elem().Kind() == reflect.Slice
	if strings.TrimSpace(text) == "" {
		remedy := "give it a value, or do not set it"
		if list {
			remedy += `; the empty list is ` + emptyList
		} else if _, ok := target.(*string); ok {
			remedy += `; the empty text is ` + emptyText
		}
		return errors.New("is empty; " + remedy)
	}
	return d.set(key, target, documentValue(target, list, text))
}

// documentValue returns a text as the value that a TOML document would have for target. What cannot
// be read as that stays a text, and set says what it should be.
func documentValue(target any, list bool, text string) any {
	if list {
		items := []any{}
		if strings.HasPrefix(strings.TrimSpace(text), "[") { // as in the file, for items that have a comma
			var array struct {
				Items []any `toml:"items"`
			}
			if _, err := toml.Decode("items = "+text, &array); err == nil {
				return array.Items
			}
		}
		for item := range strings.SplitSeq(text, ",") {
			items = append(items, strings.TrimSpace(item))
		}
		return items
	}
	switch target.(type) {
	case *string:
		if text == emptyText {
			return ""
		}
	case *bool:
		if text == "true" || text == "false" {
			return text == "true"
		}
	case *int:
		if n, err := strconv.ParseInt(text, 10, 32); err == nil {
			return n
		}
	case *float64:
		if n, err := strconv.ParseFloat(text, 64); err == nil {
			return n
		}
	}
	return text
}

// serviceVariable matches the variables that Kubernetes sets for each Service of a namespace. A
// Service called webhook-agent-admin makes WEBHOOK_AGENT_ADMIN_PORT and more:
// https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables.
var serviceVariable = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// freeName is for a person who means a variable to be referred to.
const freeName = "A variable for env:NAME that no value refers to needs another name"

// unknown adds a problem for each variable that looks like a key and is none. It returns a notice
// for each other variable of the agent's prefix that nothing uses.
func (e *environment) unknown(p *problemList) (notices []string) {
	known := []string{PathVariable}
	for _, key := range valueKeys() {
		known = append(known, Variable(key))
	}
	for _, name := range slices.Sorted(maps.Keys(e.variables)) {
		switch {
		case !strings.HasPrefix(name, variablePrefix), slices.Contains(known, name), e.referred[name], serviceVariable.MatchString(name):
		case inTable(name, "endpoint"), inTable(name, "endpoints"):
			p.addTo(name, "[[endpoint]] has no form in the environment; write endpoints in the file, or register them by endpoints add or SQL. "+freeName)
		case looksLikeKey(name, known):
			p.addTo(name, fmt.Sprintf("names no key; did you mean %s? %s", closest(name, known), freeName))
		default:
			notices = append(notices, fmt.Sprintf("the environment variable %s names no key, and no value refers to it by env:%s, so it is not used", Quoted(name), name))
		}
	}
	return notices
}

// looksLikeKey reports whether a name begins with a table of Config, or is a key but for two letters.
func looksLikeKey(name string, known []string) bool {
	const typingErrors = 2
	config := reflect.TypeFor[Config]()
	for i := range config.NumField() {
		if inTable(name, config.Field(i).Tag.Get("toml")) {
			return true
		}
	}
	return editDistance(name, closest(name, known)) <= typingErrors
}

// inTable reports whether a variable has the name of a table, or would be a key in it.
func inTable(name, table string) bool {
	return name == Variable(table) || strings.HasPrefix(name, Variable(table)+"_")
}

// eachValue calls do for each key of the struct target that has a variable: each value of a table.
// [[endpoint]] is a list of tables, for which a variable has no form.
func eachValue(prefix string, target reflect.Value, do func(key string, field reflect.Value)) {
	for i := range target.NumField() {
		key := target.Type().Field(i).Tag.Get("toml")
		switch field := target.Field(i); {
		case key == "-":
		case isTable(field.Type()):
			eachValue(prefix+key+".", field, do)
		case field.Kind() != reflect.Slice || !isTable(field.Type().Elem()):
			do(prefix+key, field)
		}
	}
}

// isTable reports whether a type is a table of the file.
func isTable(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[secret.Text]() && t.Field(0).Tag.Get("toml") != ""
}

// valueKeys returns the keys that eachValue visits.
func valueKeys() (keys []string) {
	eachValue("", reflect.ValueOf(&Config{}).Elem(), func(key string, _ reflect.Value) { keys = append(keys, key) })
	return keys
}
