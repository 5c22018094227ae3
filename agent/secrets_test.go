package agent

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

const sentinel = "sentinel0hunter2"

// plant puts the sentinel wherever v can hold a secret. It adds one element to each list whose
// elements can.
func plant(v reflect.Value) (planted int) {
	switch {
	case v.Type() == reflect.TypeFor[secret.Text]():
		v.Set(reflect.ValueOf(secret.New(sentinel)))
		return 1
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				planted += plant(v.Field(i))
			}
		}
	case v.Kind() == reflect.Pointer && v.Type().Elem().Kind() == reflect.Struct:
		v.Set(reflect.New(v.Type().Elem()))
		planted = plant(v.Elem())
	case v.Kind() == reflect.Slice:
		list := reflect.MakeSlice(v.Type(), 1, 1)
		if planted = plant(list.Index(0)); planted > 0 {
			v.Set(list)
		}
	}
	return planted
}

// The test prints, logs and encodes every value that holds a secret.
func TestSecrets_NothingThatHoldsOneShowsIt(t *testing.T) {
	keys, err := secret.NewKeyring([]secret.Text{secret.New(hex.EncodeToString([]byte(sentinel + sentinel)))})
	if err != nil {
		t.Fatal(err)
	}
	console, err := access.NewKeys([]secret.Text{secret.New(sentinel + sentinel + sentinel + sentinel)})
	if err != nil {
		t.Fatal(err)
	}
	webhook, err := (&config.Network{}).Checker()
	if err != nil {
		t.Fatal(err)
	}
	target := webhook.Target("https://h.example/"+sentinel+"?"+sentinel, secret.New(sentinel), sink.Former{Secret: secret.New(sentinel + "2"), Until: time.Now().Add(time.Hour)})
	if err := target.Err(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		value any // a pointer
		holds int // secrets
	}{
		{new(config.Config), 7}, {new(outbox.Config), 1}, {new(outbox.LedgerConfig), 1}, {new(outbox.Endpoint), 4}, {new(outbox.EndpointState), 4}, {new(outbox.State), 4},
		{new(outbox.EndpointChange), 4}, {new(outbox.Change), 4}, {new(outbox.Batch), 4}, {new(outbox.ManagedEndpoint), 2},
		{&keys, 0}, {&console, 0}, {access.NewVerifier(secret.New(sentinel), console), 0}, {target, 0}, {&sink.Request{Target: target}, 0},
	} {
		v := reflect.ValueOf(c.value).Elem()
		if c.holds > 0 {
			if n := plant(v); n != c.holds {
				t.Errorf("%T holds %d secrets, want %d: is it new?", c.value, n, c.holds)
			}
		}
		for form, text := range shown(c.value, v.Interface()) {
			for _, leak := range []string{sentinel, hex.EncodeToString([]byte(sentinel)), strings.ToUpper(hex.EncodeToString([]byte(sentinel))), strings.Trim(fmt.Sprint([]byte(sentinel)), "[]")} {
				if strings.Contains(text, leak) {
					t.Errorf("%T shows a secret by %s: %s", c.value, form, text)
				}
			}
		}
	}
}

// shown returns everything that may be printed of a value, by the way of printing.
func shown(pointer, value any) map[string]string {
	texts := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		texts[verb] = fmt.Sprintf(verb+" "+verb, pointer, value)
	}
	if encoded, err := json.Marshal(value); err == nil {
		texts["JSON"] = string(encoded)
	}
	var document bytes.Buffer
	if err := toml.NewEncoder(&document).Encode(value); err == nil {
		texts["TOML"] = document.String()
	}
	for _, format := range []string{"text", "json"} {
		var log bytes.Buffer
		logger := config.NewLogger(&log, config.Log{Level: slog.LevelInfo, Format: format})
		logger.Info("shown", "pointer", pointer, "value", value, slog.Group("group", "value", value))
		logger.With("value", value).Error(fmt.Sprint(value), "error", fmt.Errorf("of %v", value))
		texts["log as "+format] = log.String()
	}
	return texts
}
