package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/secret"
)

// loadVariables loads what variables say, without a file.
func loadVariables(variables map[string]string) (*Config, error) {
	return Load(Input{Environ: environ(variables)})
}

func TestEnvironment_HasAVariableForEveryKey(t *testing.T) {
	const token, key = "a-token-of-more-than-32-characters", "env:KEY"
	secrets := map[string]string{"database.url": testDatabaseURL, "admin.token": token, "security.keys": key, "console.keys": key, "tracing.headers": "Authorization: Bearer abc"}
	variables := map[string]string{"KEY": strings.Repeat("ab", 32)}
	seen := map[string]string{PathVariable: "the path"}
	eachValue("", reflect.ValueOf(Default()).Elem(), func(key string, field reflect.Value) {
		name := Variable(key)
		if other, taken := seen[name]; taken {
			t.Errorf("%s is %s and %s", name, key, other)
		}
		seen[name] = key
		variables[name] = valueText(field.Interface())
		if value, isSecret := secrets[key]; isSecret {
			variables[name] = value
		}
	})
	if len(seen) < 35 {
		t.Errorf("only %d keys have a variable: %v", len(seen), seen)
	}
	cfg, err := loadVariables(variables)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range seen {
		if key != "the path" && cfg.Sources[key] != name {
			t.Errorf("%s comes from %q, want %s", key, cfg.Sources[key], name)
		}
	}
	var settings []string
	for _, s := range cfg.Settings() {
		settings = append(settings, fmt.Sprint(s))
	}
	want := []string{
		"{database.url [redacted] WEBHOOK_AGENT_DATABASE_URL}", "{security.keys [redacted] WEBHOOK_AGENT_SECURITY_KEYS}",
		"{admin.token [redacted] WEBHOOK_AGENT_ADMIN_TOKEN}", "{console.keys [redacted] WEBHOOK_AGENT_CONSOLE_KEYS}",
		"{tracing.headers [redacted] WEBHOOK_AGENT_TRACING_HEADERS}",
	}
	if diff := cmp.Diff(want, settings); diff != "" {
		t.Errorf("the settings differ (-want +got):\n%s", diff)
	}
}

func TestEnvironment_SaysEachValueAsTheFileDoes(t *testing.T) {
	for _, test := range []struct{ key, text, toml string }{
		{"delivery.timeout", "20s", `"20s"`},
		{"outbox.retention", "1d12h", `"1d12h"`},
		{"delivery.retries", "5s,25s, 2m", `["5s", "25s", "2m"]`},
		{"delivery.retries", "[]", `[]`},
		{"delivery.queue_memory", "128MiB", `"128MiB"`},
		{"delivery.concurrency", "32", `32`},
		{"network.allow_http", "true", `true`},
		{"network.allow_networks", "10.20.0.0/16,fd12::/48", `["10.20.0.0/16", "fd12::/48"]`},
		{"outbox.columns.id", "event_id", `"event_id"`},
		{"outbox.types", "lead.*,payment.received", `["lead.*", "payment.received"]`},
		{"outbox.time_zone", `""`, `""`},
		{"log.level", "warn", `"warn"`},
		{"admin.token", "env:TOKEN", `"env:TOKEN"`},
		{"security.keys", "env:KEY," + strings.Repeat("cd", 32), `["env:KEY", "` + strings.Repeat("cd", 32) + `"]`},
	} {
		variables := map[string]string{"DATABASE_URL": testDatabaseURL, "TOKEN": strings.Repeat("t", 32), "KEY": strings.Repeat("ab", 32)}
		file, err := loadText(t, test.key+" = "+test.toml, variables)
		if err != nil {
			t.Fatal(err)
		}
		variables[Variable(test.key)] = test.text
		got, err := loadVariables(variables)
		if err != nil {
			t.Errorf("%s: %v", test.text, err)
			continue
		}
		file.Sources, got.Sources = nil, nil
		if diff := cmp.Diff(file, got, cmp.Comparer(secret.Text.Equal), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%s differs (-file +environment):\n%s", test.key, diff)
		}
	}
}

func TestLoad_TheFlagWinsOverTheEnvironmentAndThatOverTheFile(t *testing.T) {
	const key = "database.url"
	url := func(host string) string { return "postgres://agent@" + host + "/app" }
	inFile, variable := `url = "`+url("file")+`"`, Variable(key)+"="+url("environment")
	fallback := "DATABASE_URL=" + url("fallback")
	for _, test := range []struct {
		file, flag string
		environ    []string
		want       string
		source     string
		notice     bool
	}{
		{inFile, url("flag"), []string{variable, fallback}, url("flag"), "--database-url", false},
		{inFile, "env:DATABASE_URL", []string{variable, fallback}, url("fallback"), "--database-url", false},
		{inFile, "", []string{variable, fallback}, url("environment"), Variable(key), true},
		{inFile, "", []string{variable}, url("environment"), Variable(key), false},
		{inFile, "", []string{fallback}, url("file"), "the file", true},
		{inFile, "", []string{"DATABASE_URL=" + url("file")}, url("file"), "the file", false},
		{inFile, "", []string{"DATABASE_URL="}, url("file"), "the file", false},
		{`url = "env:DATABASE_URL"`, "", []string{fallback}, url("fallback"), "the file", false},
		{"", "", []string{fallback}, url("fallback"), "DATABASE_URL", false},
		{"", "", []string{variable, fallback}, url("environment"), Variable(key), true},
		// What is replaced is not read: the role that migrates may not have it.
		{`url = "file:/no/such"`, url("flag"), nil, url("flag"), "--database-url", false},
		{`url = "env:NO_SUCH"`, "", []string{variable}, url("environment"), Variable(key), false},
		{"", url("flag"), []string{Variable(key) + "=file:/no/such"}, url("flag"), "--database-url", false},
		{`url = "env:WEBHOOK_AGENT_DATABASE_APP"`, url("flag"), []string{"WEBHOOK_AGENT_DATABASE_APP=x"}, url("flag"), "--database-url", false},
	} {
		path := writeText(t, "[database]\n"+test.file)
		cfg, err := Load(Input{Path: path, Environ: test.environ, DatabaseURL: test.flag})
		if err != nil {
			t.Errorf("%+v: %v", test, err)
			continue
		}
		source := strings.Replace(cfg.Sources[key], path, "the file", 1)
		if got := cfg.Database.URL.Reveal(); got != test.want || source != test.source {
			t.Errorf("%+v: %s by %s", test, got, source)
		}
		noticed := strings.HasPrefix(cfg.DatabaseWarning, "DATABASE_URL is not used, because "+cfg.Sources[key]+" sets database.url; to use it, add --database-url env:DATABASE_URL")
		if noticed != test.notice || !noticed && cfg.DatabaseWarning != "" || slices.Contains(cfg.Warnings, cfg.DatabaseWarning) != test.notice {
			t.Errorf("%+v: notice %q among %q", test, cfg.DatabaseWarning, cfg.Warnings)
		}
	}
	cfg, err := Load(Input{Path: writeText(t, "[delivery]\ntimeout = \"30s\"\nconcurrency = 7"), Environ: []string{fallback, "WEBHOOK_AGENT_DELIVERY_TIMEOUT=20s"}})
	if err != nil || cfg.Delivery.Timeout.String() != "20s" || cfg.Delivery.Concurrency != 7 || cfg.Delivery.MaxBody != Default().Delivery.MaxBody {
		t.Errorf("%v, %v", cfg, err)
	}
}

func TestLoad_ReportsTheProblemsOfAllSourcesAtOnceAndNoSecret(t *testing.T) {
	path := writeText(t, "[delivery]\ntimeout = \"61s\"\nconcurrency = 0\nendpoint_concurrency = 0\n[outbox]\ntabel = \"x.y\"")
	_, err := Load(Input{Path: path, DatabaseURL: "mysql://u:" + planted + "@h/d", Environ: []string{
		"WEBHOOK_AGENT_DELIVERY_TIMEOUT=2m",
		"WEBHOOK_AGENT_DELIVERY_CONCURRENCY=" + ugly,
		"WEBHOOK_AGENT_DELIVERY_RETRIES=5s,bogus,-2s",
		"WEBHOOK_AGENT_DELIVERY_TIMOUT=" + planted,
		"WEBHOOK_AGENT_NETWORK_ALLOW_HTTP=yes",
		"WEBHOOK_AGENT_NETWORK_ALLOW_NETWORKS=169.254.0.0/16",
		"WEBHOOK_AGENT_OUTBOX_TYPES=lead.created,a.*.b",
		"WEBHOOK_AGENT_OUTBOX_SLOT=",
		"WEBHOOK_AGENT_ADMIN_TOKEN=" + planted,
		"WEBHOOK_AGENT_ADMIN_HOSTS=a\xff",
		"WEBHOOK_AGENT_SECURITY_KEYS=" + planted + ",file:/no/such",
		"WEBHOOK_AGENT_CONSOLE_KEYS=",
		"WEBHOOK_AGENT_ENDPOINT_SECRET=" + planted,
	}})
	problems, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("%v", err)
	}
	got := strings.Split(strings.ReplaceAll(problems.Error(), path, "FILE"), "\n")
	want := []string{
		"FILE: line 6: outbox.tabel: unknown key; did you mean outbox.table?",
		`WEBHOOK_AGENT_OUTBOX_SLOT: is empty; give it a value, or do not set it; the empty text is ""`,
		`WEBHOOK_AGENT_DELIVERY_RETRIES: "bogus" is not a duration like 15s, 2m, 24h or 30d`,
		`WEBHOOK_AGENT_DELIVERY_RETRIES: "-2s" must be between 1s and 7d`,
		`WEBHOOK_AGENT_DELIVERY_CONCURRENCY: must be a whole number`,
		`WEBHOOK_AGENT_NETWORK_ALLOW_HTTP: must be true or false`,
		`WEBHOOK_AGENT_SECURITY_KEYS: file /no/such cannot be read: no such file or directory`,
		`WEBHOOK_AGENT_ADMIN_HOSTS: is not valid UTF-8, or has a zero byte; write it in UTF-8`,
		`WEBHOOK_AGENT_CONSOLE_KEYS: is empty; give it a value, or do not set it; the empty list is []`,
		`--database-url: it begins with the name of a driver or of another protocol; write it as postgres://user:password@host:5432/database`,
		`WEBHOOK_AGENT_OUTBOX_TYPES[2]: is "a.*.b", must be an event type such as lead.created, lead.* or *`,
		`WEBHOOK_AGENT_DELIVERY_TIMEOUT: is 2m, must be between 1s and 1m`,
		`FILE: delivery.endpoint_concurrency: is 0, must be between 1 and 1000`,
		`WEBHOOK_AGENT_NETWORK_ALLOW_NETWORKS: 169.254.0.0/16 cannot be allowed: link-local addresses are always refused`,
		`WEBHOOK_AGENT_ADMIN_TOKEN: has 16 characters, must have at least 32; make one with: openssl rand -hex 32`,
		`WEBHOOK_AGENT_DELIVERY_TIMOUT: names no key; did you mean WEBHOOK_AGENT_DELIVERY_TIMEOUT? A variable for env:NAME that no value refers to needs another name`,
		`WEBHOOK_AGENT_ENDPOINT_SECRET: [[endpoint]] has no form in the environment; write endpoints in the file, or register them by endpoints add or SQL. A variable for env:NAME that no value refers to needs another name`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems differ (-want +got):\n%s", diff)
	}
	if strings.Contains(err.Error(), planted) {
		t.Error("a problem tells a secret")
	}

	// Of a file that cannot be read nobody knows what it sets.
	_, err = Load(Input{Path: "/no/such.toml", Environ: []string{"WEBHOOK_AGENT_LOG_LEVEL=loud", "WEBHOOK_AGENT_CONSOLE_KEY=x"}})
	if err == nil || !strings.HasPrefix(err.Error(), "/no/such.toml: ") || !strings.HasSuffix(err.Error(), "\nWEBHOOK_AGENT_LOG_LEVEL: \"loud\" is not one of debug, info, warn, error") {
		t.Errorf("with a file that is missing: %v", err)
	}
	// A value of the file that cannot be read hides no problem of the value that replaces it.
	path = writeText(t, "[database]\nurl = \"env:DATABASE_URL\"\n[delivery]\ntimeout = 15")
	_, err = Load(Input{Path: path, Environ: []string{"DATABASE_URL=" + testDatabaseURL, "WEBHOOK_AGENT_DELIVERY_TIMEOUT=90s"}})
	if err == nil || err.Error() != path+": line 4: delivery.timeout: must be a duration in quotes, such as \"15s\"\nWEBHOOK_AGENT_DELIVERY_TIMEOUT: is 1m30s, must be between 1s and 1m" {
		t.Errorf("two problems of one key: %v", err)
	}
	for text, want := range map[string]string{
		"env:NO_SUCH": `--database-url: the environment variable "NO_SUCH" is not set`,
		"file:secret": "--database-url: file:secret must be an absolute path, such as file:/etc/quintago/token",
	} {
		if _, err := Load(Input{DatabaseURL: text, Environ: []string{"DATABASE_URL=" + testDatabaseURL}}); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func TestLoad_KnowsANameThatIsNoKey(t *testing.T) {
	file := "[security]\nkeys = [\"env:WEBHOOK_AGENT_SECURITY_KEY\"]"
	for name, want := range map[string]string{
		"DELIVERY_TIMOUT": "did you mean WEBHOOK_AGENT_DELIVERY_TIMEOUT?", "DELIVERY": "names no key", "LOG_LVL": "did you mean WEBHOOK_AGENT_LOG_LEVEL?",
		"OUTBOX_COLUMN_ID": "did you mean WEBHOOK_AGENT_OUTBOX_COLUMNS_ID?", "DELIVRY_TIMEOUT": "did you mean WEBHOOK_AGENT_DELIVERY_TIMEOUT?",
		"DATABASEURL": "did you mean WEBHOOK_AGENT_DATABASE_URL?", "CONSOLE_KEY": "did you mean WEBHOOK_AGENT_CONSOLE_KEYS?",
		"ENDPOINT_1_URL": "has no form in the environment", "ENDPOINTS": "has no form in the environment",
		// Kubernetes makes these of a Service's name.
		"SERVICE_HOST": "", "PORT": "", "ADMIN_SERVICE_HOST": "", "ADMIN_SERVICE_PORT": "", "ADMIN_SERVICE_PORT_HTTP": "", "ADMIN_PORT": "",
		"ADMIN_PORT_8480_TCP": "", "ADMIN_PORT_8480_TCP_PROTO": "", "CONSOLE_PORT_8481_TCP_ADDR": "", "LOG_PORT_53_UDP_PORT": "",
		"CONFIG": "", "SECURITY_KEY": "",
		// Free names for references. Nothing refers to them here.
		"TOKEN": "notice", "KEY_NEW": "notice", "SLOT": "notice",
	} {
		variables := map[string]string{"DATABASE_URL": testDatabaseURL, "WEBHOOK_AGENT_SECURITY_KEY": strings.Repeat("ab", 32)}
		if name != "SECURITY_KEY" {
			variables[variablePrefix+name] = planted
		}
		cfg, err := loadText(t, file, variables)
		switch {
		case want == "" && (err != nil || len(cfg.Warnings) > 0):
			t.Errorf("%s: %v, %v", name, err, cfg)
		case want == "notice" && (err != nil || len(cfg.Warnings) != 1 || !strings.Contains(cfg.Warnings[0], `"WEBHOOK_AGENT_`+name+`" names no key`)):
			t.Errorf("%s: %v, %v", name, err, cfg)
		case want != "" && want != "notice" && (err == nil || !strings.HasPrefix(err.Error(), "WEBHOOK_AGENT_"+name+": ") || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %s", name, err, want)
		}
		if strings.Contains(fmt.Sprint(err, cfg), planted) {
			t.Errorf("%s: the value is told", name)
		}
	}
}

// Names that look like a key are free for references, wherever these are.
func TestLoad_AVariableThatAValueRefersToIsNoUnknownKey(t *testing.T) {
	const name = "WEBHOOK_AGENT_ENDPOINT_BOOKS"
	const endpoint = "[[endpoint]]\nvenue = \"v\"\nevents = [\"*\"]\n"
	for _, test := range []struct {
		file, secret string
		want         string // a problem; "" if there is none
	}{
		{file: endpoint + "url = \"https://h.example/\"\nsecret = \"env:" + name + "\""},
		{file: endpoint + "url = \"env:" + name + "\"\nsecret = \"the secret\""},
		{secret: "env:" + name},
		{secret: "env:" + name + "_2", want: name + ": [[endpoint]] has no form"},
		{secret: name, want: name + ": [[endpoint]] has no form"},
		{file: "[console]\nsecret = \"env:" + name + "\"", want: "FILE: line 2: console.secret: unknown key"},
	} {
		path := writeText(t, test.file)
		_, err := Load(Input{Path: path, Environ: environ(map[string]string{"DATABASE_URL": testDatabaseURL, name: "https://books.example/"}), Secret: test.secret})
		got := strings.ReplaceAll(fmt.Sprint(err), path, "FILE")
		if test.want == "" && err != nil || !strings.HasPrefix(got, test.want) || strings.Contains(got, "\n") {
			t.Errorf("%s, --secret %q: %s, want %q alone", test.file, test.secret, got, test.want)
		}
	}
}

func TestLoad_WithoutAFileTheEnvironmentIsEnough(t *testing.T) {
	cfg, err := loadVariables(map[string]string{"DATABASE_URL": testDatabaseURL, "WEBHOOK_AGENT_LOG_FORMAT": "json"})
	if err != nil || cfg.Log.Format != "json" || cfg.Database.URL.Reveal() != testDatabaseURL {
		t.Errorf("%v, %v", cfg, err)
	}
	want := "database.url: is missing, and there is no configuration file; write one by webhook-agent init, or set the environment variable DATABASE_URL to postgres://user:password@host:5432/database"
	if _, err := loadVariables(nil); err == nil || err.Error() != want {
		t.Errorf("with nothing: %v\nwant %s", err, want)
	}
}

func TestSettings_AreWhatDiffersFromTheDefaults(t *testing.T) {
	path := writeText(t, "[database]\nurl = \"postgres://u:"+planted+"@h/d\"\n[delivery]\ntimeout = \"15s\"\nretries = []\nfailing_interval = \"10m30s\"\n[log]\nlevel = \"warn\"\n"+
		"[[endpoint]]\nvenue = \"v\"\nurl = \"https://h.example/"+planted+"\"\nevents = [\"*\"]\nsecret = \""+planted+"\"")
	cfg, err := Load(Input{Path: path, Environ: []string{"WEBHOOK_AGENT_LOG_LEVEL=debug", "WEBHOOK_AGENT_OUTBOX_TYPES=lead.*, task.*", "WEBHOOK_AGENT_OUTBOX_RETENTION=1d1h1s"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []Setting{
		{"database.url", "[redacted]", path}, {"outbox.retention", "25h0m1s", "WEBHOOK_AGENT_OUTBOX_RETENTION"},
		{"outbox.types", "lead.*,task.*", "WEBHOOK_AGENT_OUTBOX_TYPES"},
		{"delivery.retries", "[]", path}, {"delivery.failing_interval", "10m30s", path}, {"log.level", "debug", "WEBHOOK_AGENT_LOG_LEVEL"}, {"endpoint", "1 of them", path},
	}
	if diff := cmp.Diff(want, cfg.Settings()); diff != "" {
		t.Errorf("settings differ (-want +got):\n%s", diff)
	}
}

func TestDocuments_NameVariablesThatExist(t *testing.T) {
	known := []string{PathVariable}
	for _, key := range valueKeys() {
		known = append(known, Variable(key))
	}
	for _, path := range []string{"../../docs/configuration.md", "../../config.example.toml"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(`WEBHOOK_AGENT_[A-Z_]*[A-Z]`).FindAllString(string(text), -1)
		if len(names) < 3 {
			t.Errorf("%s names the variables %q only", path, names)
		}
		for _, name := range names {
			free := []string{"WEBHOOK_AGENT_TOKEN", "WEBHOOK_AGENT_SERVICE_HOST"} // a reference of the example, and one of Kubernetes
			if !slices.Contains(known, name) && !slices.Contains(free, name) {
				t.Errorf("%s names %s, which does not exist", path, name)
			}
		}
	}
}

// FuzzEnvironment gives one key any text. What is accepted is the same again when it is written as Settings
// write it. What is refused is said in sentences that name the variable, and never quote a secret.
func TestEnvironment_TakesAListAsTheFileHasIt(t *testing.T) {
	for text, want := range map[string][]string{"c,a.b": {"c", "a.b"}, `["c", "a.b"]`: {"c", "a.b"}, "[]": {}} {
		cfg, err := loadVariables(map[string]string{"DATABASE_URL": testDatabaseURL, "WEBHOOK_AGENT_ADMIN_HOSTS": text})
		if err != nil || !slices.Equal(cfg.Admin.Hosts, want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	cfg, err := loadVariables(map[string]string{"DATABASE_URL": testDatabaseURL, "WEBHOOK_AGENT_TRACING_HEADERS": `["X-Scope: a,b"]`})
	if err != nil || len(cfg.Tracing.Headers) != 1 || cfg.Tracing.Headers[0].Reveal() != "X-Scope: a,b" {
		t.Errorf("an item with a comma: %v", err)
	}
}

func FuzzEnvironment(f *testing.F) {
	keys := valueKeys()
	for i, text := range []string{"postgres://u@h/d", "a.b", "30d", "5s,25s", "[]", `""`, "true", "64MiB", "10.0.0.0/8,fd00::/8", "env:X", "lead.*,", " , ", "https://a.example", "\x00"} {
		for key := range keys {
			f.Add(uint8(key), text)
		}
		f.Add(uint8(i), text+text)
	}
	f.Fuzz(func(t *testing.T, n uint8, text string) {
		if strings.Contains(text, "file:") {
			return // files of this machine are no part of the input
		}
		key := keys[int(n)%len(keys)]
		name := Variable(key)
		list := []string{"DATABASE_URL=" + testDatabaseURL, "X=value of X"}
		if secretKey := slices.Contains([]string{"database.url", "admin.token", "security.keys", "console.keys", "tracing.headers"}, key); secretKey && !strings.Contains(text, "env:") {
			if _, err := Load(Input{Environ: append(list, name+"="+text+planted)}); err != nil && strings.Contains(err.Error(), planted) {
				t.Errorf("%s=%q: a problem tells the value: %v", name, text+planted, err)
			}
		}
		cfg, err := Load(Input{Environ: append(list, name+"="+text)})
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, name) && !strings.Contains(line, key) || len(line) > 700 {
					t.Errorf("%s=%q: a problem does not name it: %q", name, text, line)
				}
			}
			return
		}
		for _, s := range cfg.Settings() {
			if s.Key != key || s.Value == "[redacted]" || strings.Contains(s.Value, "[redacted]") {
				continue
			}
			again, err := Load(Input{Environ: append(list, name+"="+s.Value)})
			if err != nil {
				t.Fatalf("%s=%q is written %q, which is refused: %v", name, text, s.Value, err)
			}
			if diff := cmp.Diff(cfg.Settings(), again.Settings()); diff != "" {
				t.Errorf("%s=%q is another value when it is written %q:\n%s", name, text, s.Value, diff)
			}
		}
	})
}
