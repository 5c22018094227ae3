package config

import (
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/secret"
)

// Setting is a key whose value is not the default.
type Setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"`  // as a variable has it; a secret is [redacted]
	Source string `json:"source"` // the path of the file, a variable or a flag
}

// Settings returns what a configuration that Load has returned sets beyond the defaults, in the
// order of the keys in Config.
func (c *Config) Settings() []Setting {
	settings := []Setting{}
	defaults := map[string]any{}
	eachValue("", reflect.ValueOf(Default()).Elem(), func(key string, field reflect.Value) { defaults[key] = field.Interface() })
	eachValue("", reflect.ValueOf(c).Elem(), func(key string, field reflect.Value) {
		value := field.Interface()
		if source := c.Sources[key]; source != "" && valueText(value) != valueText(defaults[key]) {
			settings = append(settings, Setting{key, valueText(value), source})
		}
	})
	if n := len(c.Endpoints); n > 0 {
		settings = append(settings, Setting{"endpoint", fmt.Sprintf("%d of them", n), c.Sources["endpoint"]})
	}
	return settings
}

// valueText returns the value of a key as a variable has it. A secret is [redacted].
func valueText(value any) string {
	switch v := value.(type) {
	case string:
		if v == "" {
			return emptyText
		}
		return v
	case secret.Text:
		if v.IsZero() {
			return emptyText
		}
		return v.String()
	case time.Duration:
		text := FormatDuration(v)
		if same, err := ParseDuration(text); err != nil || same != v {
			return v.String() // FormatDuration has two units, and this value has more
		}
		return text
	case slog.Level:
		return strings.ToLower(v.String())
	}
	list := reflect.ValueOf(value)
	if list.Kind() != reflect.Slice {
		return fmt.Sprint(value)
	}
	if list.Len() == 0 {
		return emptyList
	}
	items := make([]string, list.Len())
	for i := range items {
		items[i] = valueText(list.Index(i).Interface())
	}
	return strings.Join(items, ",")
}
