package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/secret"
)

// planted is a secret that no text may show.
const planted = "sentinel0hunter2"

// ugly has what must not reach a terminal: a colour sequence, a C1 control character, a mark that
// reverses text, and a line break.
const ugly = "a\x1b[31mb\u009bc\u202ed\ne"

const testDatabaseURL = "postgres://agent:sentinel-database@db.example.com:5432/app"

// environ returns variables of a test as os.Environ does.
func environ(variables map[string]string) (list []string) {
	for name, value := range variables {
		list = append(list, name+"="+value)
	}
	return list
}

// writeText writes a configuration file and returns its path.
func writeText(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// loadText loads a configuration file with this text and the given environment.
func loadText(t *testing.T, text string, variables map[string]string) (*Config, error) {
	t.Helper()
	return Load(Input{Path: writeText(t, text), Environ: environ(variables)})
}

// problemsOf loads a file that must be refused and returns why.
func problemsOf(t *testing.T, text string, variables map[string]string) []string {
	t.Helper()
	_, err := loadText(t, text, variables)
	problems, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("LoadConfig returned %v, want a *ConfigError, for\n%s", err, text)
	}
	sentences := make([]string, len(problems.Problems))
	for i, p := range problems.Problems {
		sentences[i] = p.Sentence
	}
	return sentences
}

func TestLoadConfig_ReadsEveryKindOfValue(t *testing.T) {
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte("0123456789abcdef0123456789abcdef\r\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	cfg, err := loadText(t, `
[database]
url = "env:MY_DATABASE"
[outbox]
table = "app.events"
retention = "1d12h"
[outbox.columns]
data = "payload"
[delivery]
timeout = "1m"
retries = ["1s", "2d"]
disable_after = 7
queue_memory = "2GiB"
[network]
allow_http = true
allow_networks = ["10.20.0.0/16", "fd12::/48"]
[admin]
listen = "0.0.0.0:8480"
token = "file:`+tokenFile+`"
hosts = ["agent.internal"]
[security]
keys = ["env:NEW_KEY", "`+strings.Repeat("cd", 32)+`"]
[console]
keys = ["env:NEW_KEY"]
origins = ["https://app.example.com", "http://localhost:3000"]
session = "15m"
[log]
level = "debug"
format = "json"
[[endpoint]]
venue = "venue_1"
url = "http://10.20.0.1/hook?key=1"
events = ["lead.*", "payment.received"]
secret = "env:HOOK_SECRET"
description = "books"
`, map[string]string{"MY_DATABASE": testDatabaseURL, "HOOK_SECRET": "hook secret", "NEW_KEY": strings.Repeat("ab", 32)})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Database.URL = secret.New(testDatabaseURL)
	want.Outbox.Table, want.Outbox.Retention, want.Outbox.Columns.Data = "app.events", 36*time.Hour, "payload"
	want.Delivery.Timeout, want.Delivery.DisableAfter, want.Delivery.QueueMemory = time.Minute, 7, 2<<30
	want.Delivery.Retries = []time.Duration{time.Second, 48 * time.Hour}
	want.Network = Network{true, []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd12::/48")}}
	want.Admin = Admin{"0.0.0.0:8480", secret.New("0123456789abcdef0123456789abcdef"), []string{"agent.internal"}}
	want.Security.Keys = []secret.Text{secret.New(strings.Repeat("ab", 32)), secret.New(strings.Repeat("cd", 32))}
	want.Console = Console{Keys: []secret.Text{secret.New(strings.Repeat("ab", 32))}, Origins: []string{"https://app.example.com", "http://localhost:3000"}, Session: 15 * time.Minute}
	want.Log = Log{slog.LevelDebug, "json"}
	cfg.Sources = nil // TestSettings_AreWhatDiffersFromTheDefaults reads them
	want.Endpoints = []Endpoint{{"venue_1", secret.New("http://10.20.0.1/hook?key=1"), []string{"lead.*", "payment.received"}, secret.New("hook secret"), "books"}}
	if diff := cmp.Diff(want, cfg, cmp.Comparer(secret.Text.Equal), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("configuration differs (-want +got):\n%s", diff)
	}
}

func TestLoadConfig_TakesOnlyOriginsThatMayBeTrusted(t *testing.T) {
	for origin, want := range map[string]string{
		"https://app.example.com": "", "https://app.example.com:8443": "", "https://app": "", "https://192.0.2.1": "", "https://[2001:db8::1]:8443": "",
		"http://localhost:3000": "", "http://127.0.0.1:3000": "", "http://localhost": "",
		"http://app.example.com": "must begin with https://", "http://127.0.0.1.evil.example": "must begin with https://", "http://localhost.evil.example": "must begin with https://",
		"http://192.168.0.1:3000": "must begin with https://", "ftp://app.example.com": "must begin with https://", "javascript://app.example.com": "must begin with https://",
		"*": "must be an origin", "null": "must be an origin", "": "must be an origin", "app.example.com": "must be an origin", "https://": "must be an origin", "https:app": "must be an origin",
		"https://*.example.com": "is a pattern", "https://*": "is a pattern",
		"https://app.example.com/": "without a path", "https://app.example.com/settings": "without a path", "https://app.example.com?x": "without a path", "https://app.example.com#x": "without a path",
		"https://user@app.example.com": "without a path", "https://app.example.com:0": "without a path", "https://app.example.com:99999": "without a path", "https://a;b": "without a path", "https://a b": "must be an origin",
		"https://a'none'": "without a path", "https://app.example.com, https://evil.example": "must be an origin", "https://ápp.example.com": "without a path", "https://app.example.com https://evil.example": "must be an origin",
		"https://App.example.com": "small letters", "HTTPS://app.example.com": "without a path", "https://app.example.com:443": "the port", "http://localhost:80": "the port", "https://app.example.com:": "small letters", "https://app.example.com:08443": "small letters",
	} {
		cfg, err := loadText(t, fmt.Sprintf("[console]\nkeys = [%q]\norigins = [%q]", strings.Repeat("k", 32), origin), map[string]string{"DATABASE_URL": testDatabaseURL})
		switch {
		case want == "" && (err != nil || cfg.Console.Origins[0] != origin):
			t.Errorf("%s: %v", origin, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), "console.origins[1]: is ") || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want an error with %q", origin, err, want)
		}
	}
	for _, text := range []string{"origins = [\"https://app.example.com\"]", "session = \"59s\"", "session = \"24h1s\"", "session = \"0s\"", "origins = [" + strings.Repeat("\"https://app.example.com\",", maxOrigins+1) + "]"} {
		if _, err := loadText(t, "[console]\n"+text, map[string]string{"DATABASE_URL": testDatabaseURL}); err == nil || !strings.Contains(err.Error(), "console."+text[:7]) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestLoadConfig_TakesDatabaseURLFromTheEnvironment(t *testing.T) {
	cfg, err := loadText(t, "", map[string]string{"DATABASE_URL": testDatabaseURL})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Database.URL.Reveal() != testDatabaseURL {
		t.Error("database.url is not DATABASE_URL")
	}
}

func TestLoadConfig_ReportsAllProblemsAtOnce(t *testing.T) {
	got := problemsOf(t, `
[database]
url = "mysql://root:sentinel-url@host/db"
[outbox]
tabel = "x.y"
slot = "Bad-Slot"
[delivery]
timeout = 15
concurrency = 0
[log]
format = "xml"
[[endpoint]]
venue = "v"
secrets = "sentinel-endpoint"
`, nil)
	want := []string{
		`line 8: delivery.timeout: must be a duration in quotes, such as "15s"`,
		`endpoint[1].secrets: unknown key; did you mean endpoint.secret?`,
		`line 5: outbox.tabel: unknown key; did you mean outbox.table?`,
		`database.url: it begins with the name of a driver or of another protocol; write it as postgres://user:password@host:5432/database`,
		`outbox.slot: is "Bad-Slot", must be a name of at most 63 lower-case letters, digits and _`,
		`delivery.concurrency: is 0, must be between 1 and 10000`,
		`log.format: is "xml", must be text or json`,
		`endpoint[1].url: the URL must begin with https://`,
		`endpoint[1].events: events names no event type; use types such as lead.created, lead.* or *`,
		`endpoint[1].secret: the secret is empty`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems differ (-want +got):\n%s", diff)
	}
}

func TestLoadConfig_ExplainsEachProblem(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	empty := filepath.Join(t.TempDir(), "empty")
	for path, file := range map[string]struct {
		text string
		mode os.FileMode
	}{open: {"secret", 0o604}, empty: {"\n", 0o600}} {
		if err := os.WriteFile(path, []byte(file.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, file.mode); err != nil { // WriteFile's mode passes the umask
			t.Fatal(err)
		}
	}
	for text, want := range map[string]string{
		"delivery = 3":                          `line 1: delivery: must be a table, written [delivery]`,
		"endpoint = 3":                          `line 1: endpoint: must be a list of tables, each written [[endpoint]]`,
		"[delivry]\ntimeout = '1s'":             `line 1: delivry: unknown key; did you mean delivery?`,
		"[outbox]\ntimeout = '1s'":              `line 2: outbox.timeout: unknown key; did you mean delivery.timeout?`,
		"[delivery]\ntimeout = 'soon'":          `line 2: delivery.timeout: "soon" is not a duration like 15s, 2m, 24h or 30d`,
		"[delivery]\ntimeout = '61s'":           `delivery.timeout: is 1m1s, must be between 1s and 1m`,
		"[delivery]\nretries = ['1s', '500ms']": `line 2: delivery.retries: "500ms" must be between 1s and 7d`,
		"[delivery]\nretries = ['5s', 'bogus', '-2s']": `line 2: delivery.retries: "bogus" is not a duration like 15s, 2m, 24h or 30d
line 2: delivery.retries: "-2s" must be between 1s and 7d`,
		"[delivery]\nretries = [5]":                      `line 2: delivery.retries: must be a list of durations in quotes, such as ["5s", "2m"]`,
		"[delivery]\nretries = ['x', 'y']":               `line 2: delivery.retries: "x" is not a duration like 15s, 2m, 24h or 30d`,
		"[delivery]\ndisable_after = '100'":              `line 2: delivery.disable_after: must be a whole number`,
		"[delivery]\nqueue_memory = '64MB'":              `line 2: delivery.queue_memory: "64MB" is not a size like 512KiB, 64MiB or 1GiB`,
		"[delivery]\nqueue_memory = '1KiB'":              `delivery.queue_memory: is 1KiB, must be between 1MiB and 64GiB`,
		"[outbox]\nretention = '2h'":                     `outbox.retention: is 2h, must be between 1d and 3650d`,
		"[outbox]\ntable = 'outbox'":                     `outbox.table: is "outbox", must be a schema and a table, such as webhooks.outbox`,
		"[outbox]\ntable = 'a.b; drop table c'":          `outbox.table: is "a.b; drop table c", must be a schema and a table, such as webhooks.outbox`,
		"[outbox]\npublication = 'a b'":                  `outbox.publication: is "a b", must be a name of at most 53 letters, digits and _`,
		"[outbox.columns]\nid = ''":                      `outbox.columns.id: is "", must be the name of a column of at most 63 letters, digits and _`,
		"[outbox.columns]\nid = 'type'":                  `outbox.columns.type: is "type", which is outbox.columns.id already`,
		"[network]\nallow_http = 1":                      `line 2: network.allow_http: must be true or false`,
		"[network]\nallow_networks = ['10.1.2.3']":       `line 2: network.allow_networks: "10.1.2.3" is not a network in CIDR form, such as 10.20.0.0/16`,
		"[network]\nallow_networks = ['10.1.0.0/8']":     `line 2: network.allow_networks: "10.1.0.0/8" has bits behind its mask; did you mean 10.0.0.0/8?`,
		"[network]\nallow_networks = ['169.254.0.0/16']": `network.allow_networks: 169.254.0.0/16 cannot be allowed: link-local addresses are always refused`,
		"[admin]\nlisten = '8480'":                       `admin.listen: is "8480", must be an address and a port, such as 127.0.0.1:8480`,
		"[admin]\nlisten = ':8480'":                      `admin.listen: is ":8480", which others can reach, but admin.token is not set; set a token or listen on 127.0.0.1`,
		"[admin]\ntoken = 'short'":                       `admin.token: has 5 characters, must have at least 32; make one with: openssl rand -hex 32`,
		"[admin]\ntoken = 'env:NO_SUCH'":                 `line 2: admin.token: the environment variable "NO_SUCH" is not set`,
		"[admin]\ntoken = 'file:token'":                  `line 2: admin.token: file:token must be an absolute path, such as file:/etc/quintago/token`,
		"[admin]\ntoken = 'file:/no/such'":               `line 2: admin.token: file /no/such cannot be read: no such file or directory`,
		"[admin]\ntoken = 'file:/'":                      `line 2: admin.token: / is not a file`,
		"[admin]\ntoken = 'file:" + open + "'":           `line 2: admin.token: file ` + open + ` is open to all users (mode 0604); run chmod 600 ` + open,
		"[admin]\ntoken = 'file:" + empty + "'":          `line 2: admin.token: file ` + empty + ` is empty`,
		"[admin]\ntoken = 'ENV:TOKEN'":                   `line 2: admin.token: the value looks like a reference; write env: or file: in small letters, with no blank before it`,
		"[admin]\ntoken = \"\\ufeffx\"":                  `line 2: admin.token: the value is no plain text in UTF-8, or has a zero byte or a byte order mark in it; write it without`,
		"[log]\nlevel = 'loud'":                          `line 2: log.level: "loud" is not one of debug, info, warn, error`,
		"[log]\nlevel = 'info'\nlevel = 'warn'":          `line 3 is not valid TOML (last key log.level): Key (hidden) has already been defined`,
		"[[endpoint]]\nvenue = ' '\ndescription = \"\\u0000\"\nurl = 'https://a.example/'\nevents = ['a ']\nsecret = 's'": `endpoint[1].venue: is blank; write the id of the venue
endpoint[1].description: is not valid UTF-8, or has a zero byte; write it in UTF-8
endpoint[1].events: events has "a ", which begins or ends with a blank, or has an invisible character; remove it`,
		"[[endpoint]]\nurl = 'https://a.example/'\nevents = ['lead.*']\nsecret = 's'\n[[endpoint]]\nvenue = 'v'\nurl = 'https://a.example/'\nevents = ['*']\nsecret = 's'\n" +
			"[[endpoint]]\nvenue = 'v'\nurl = 'https://a.example/'\nevents = ['*']\nsecret = 's'": `endpoint[1].venue: is missing
endpoint[3]: has the venue and the url of endpoint[2]; keep one of them`,
	} {
		got := strings.Join(problemsOf(t, text, map[string]string{"DATABASE_URL": testDatabaseURL}), "\n")
		if strings.Contains(text, "'x', 'y'") { // the other half of the list is reported, too
			got, _, _ = strings.Cut(got, "\n")
		}
		if got != want {
			t.Errorf("%s\n got %s\nwant %s", text, got, want)
		}
	}
	// A value that could not be read is not reported as missing too.
	if got := problemsOf(t, "[database]\nurl = 'env:NO_SUCH'\n[[endpoint]]\nvenue = 'v'\nurl = 'https://a.example/'\nevents = 3\nsecret = 'env:NO_SUCH'", nil); len(got) != 3 {
		t.Errorf("unreadable values: %q", got)
	}
	if got := problemsOf(t, "", nil); len(got) != 1 || !strings.HasPrefix(got[0], "database.url: is missing; set it, or the environment variable DATABASE_URL") {
		t.Errorf("without a database: %q", got)
	}
	if got := problemsOf(t, "", map[string]string{"DATABASE_URL": "  "}); len(got) != 1 || !strings.HasSuffix(got[0], "is blank; set it to postgres://user:password@host:5432/database") {
		t.Errorf("with a blank URL: %q", got)
	}
	_, err := Load(Input{Path: "/no/such.toml"})
	want := "/no/such.toml: the configuration file cannot be read: no such file or directory; name another with --config, or write one by webhook-agent init"
	if err == nil || err.Error() != want {
		t.Errorf("a missing file: %v\nwant %s", err, want)
	}
}

// The test puts a sentinel wherever a secret can be written, at right and at wrong places, and
// looks for it in everything that is printed.
func TestLoadConfig_TellsNoSecret(t *testing.T) {
	for _, text := range []string{
		"[database]\nurl = 'postgres://u:" + planted + "@[bad/db'",
		"[database]\nurl = 'host=x password=" + planted + " port=abc'",
		"[database]\nurl = postgres://u:" + planted + "@h/db",
		"[database]\nurl = " + planted,
		"[database]\nurl = 'postgres://u:" + planted + "@h/db\n",
		"[database]\nurl = \"\\q" + planted + "\"",
		"[admin]\ntoken = '" + planted + "'",
		"[admin]\ntoken = 0" + strings.Repeat("1234", 9),
		"[admin]\ntoken = ['" + planted + "']",
		"[admin]\ntoken = 'x'\ntoken = '" + planted + "'",
		"[admin]\ntokn = '" + planted + "'",
		"[[endpoint]]\nurl = 'https://u:" + planted + "@h.example/" + planted + "?" + planted + "'\nsecret = 'whsec_" + planted + "!'",
		"[[endpoint]]\nvenue = 'v'\nevents = ['*']\nurl = 'https://h.example/" + planted + "'\nsecret = '" + planted + "'\n" +
			"[[endpoint]]\nvenue = 'v'\nevents = ['*']\nurl = 'https://h.example/" + planted + "'\nsecret = '" + planted + "'",
	} {
		_, err := loadText(t, text, map[string]string{"DATABASE_URL": testDatabaseURL})
		if err == nil {
			t.Errorf("accepted:\n%s", text)
			continue
		}
		if said := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(said, planted) || strings.Contains(said, "sentinel-") || strings.Contains(said, "12341234") {
			t.Errorf("the error of\n%s\ntells the secret: %s", text, said)
		}
	}
	cfg, err := loadText(t, "[admin]\ntoken = '"+planted+planted+"'\n[[endpoint]]\nvenue = 'v'\nevents = ['*']\nurl = 'https://h.example/"+planted+"'\nsecret = '"+planted+"'",
		map[string]string{"DATABASE_URL": testDatabaseURL})
	if err != nil {
		t.Fatal(err)
	}
	if said := fmt.Sprintf("%v %+v %#v", cfg, *cfg, cfg); strings.Contains(said, "sentinel") {
		t.Errorf("the configuration prints a secret: %s", said)
	}
}

func TestExampleConfig_HoldsTheDefaultsAndEveryKey(t *testing.T) {
	example, err := os.ReadFile("../../config.example.toml")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := loadText(t, string(example), map[string]string{"DATABASE_URL": testDatabaseURL})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Database.URL = secret.New(testDatabaseURL)
	// The keys are there, the lists are empty.
	want.Network.AllowNetworks, want.Security.Keys, want.Console.Keys, want.Admin.Hosts = []netip.Prefix{}, []secret.Text{}, []secret.Text{}, []string{}
	want.Console.Origins, want.Tracing.Headers = []string{}, []secret.Text{}
	cfg.Sources = nil
	if diff := cmp.Diff(want, cfg, cmp.Comparer(secret.Text.Equal)); diff != "" {
		t.Errorf("the example differs from the defaults (-default +example):\n%s", diff)
	}

	// Keys without a default stand behind a single # without a space.
	complete := regexp.MustCompile(`(?m)^#(\S)`).ReplaceAllString(string(example), "$1")
	var keys map[string]any
	meta, err := toml.Decode(complete, &keys)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, key := range meta.Keys() {
		got = append(got, key.String())
	}
	expected := configKeys(reflect.TypeFor[Config](), "")
	slices.Sort(got)
	slices.Sort(expected)
	if diff := cmp.Diff(expected, got); diff != "" {
		t.Errorf("the keys of the example differ from those of Config (-Config +example):\n%s", diff)
	}
	if len(expected) < 35 {
		t.Errorf("configKeys finds %d keys only: %v", len(expected), expected)
	}
}

func TestConfig_NoticesWhatMaySurprise(t *testing.T) {
	cfg := Default()
	if got := cfg.warnings(func(string) string { return "" }); len(got) > 0 {
		t.Errorf("of the defaults: %q", got)
	}
	cfg.Network.AllowNetworks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	got := strings.Join(cfg.warnings(func(name string) string { return map[string]string{"HTTPS_PROXY": "http://u:sentinel@proxy"}[name] }), "\n")
	for _, want := range []string{"0.0.0.0/0", "::/0", "HTTPS_PROXY is ignored"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	if strings.Contains(got, "10.0.0.0/8") || strings.Contains(got, "sentinel") || strings.Count(got, "\n") != 2 {
		t.Errorf("says too much: %s", got)
	}
}

func TestLoadConfig_NoticesASecretInAFileThatIsOpenToAll(t *testing.T) {
	for text, want := range map[string]string{
		"database.url = \"postgres://u:sentinel@h/d\"":                                                                           "database.url",
		"database.url = \"host=h password=sentinel\"":                                                                            "database.url",
		"database.url = \"env:DB\"\nadmin.token = \"sentinel-token-of-32-characters-at-least\"":                                  "admin.token",
		"database.url = \"env:DB\"\nsecurity.keys = [\"" + strings.Repeat("ab", 32) + "\"]":                                      "security.keys",
		"database.url = \"postgres://u@h/d\"\nadmin.token = \"env:TOKEN\"\nsecurity.keys = [\"env:KEY\"]":                        "",
		"database.url = \"env:DB\"\n[[endpoint]]\nvenue = \"v\"\nurl = \"https://h.example/\"\nevents = [\"*\"]\nsecret = \"s\"": "endpoint[1].secret",
	} {
		path := writeText(t, text)
		variables := map[string]string{"DB": testDatabaseURL, "TOKEN": strings.Repeat("t", 32), "KEY": strings.Repeat("ab", 32)}
		for mode, open := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o644: true} {
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			cfg, err := Load(Input{Path: path, Environ: environ(variables)})
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(cfg.Warnings, "\n")
			if (got != "") != (open && want != "") || got != "" && !strings.Contains(got, "holds a secret ("+want+"); run chmod 600 "+path) || strings.Contains(got, "sentinel") {
				t.Errorf("%s with mode %04o: notices %q, want one about %q: %t", text, mode, got, want, open)
			}
		}
	}
}

// deployed loads the configuration in a file of deploy/.
func deployed(t *testing.T, file string, variables map[string]string) (*Config, error) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/" + file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "webhook-agent.toml: |\n")
	block, _, ended := strings.Cut(rest, "\n---")
	if !found || !ended {
		t.Fatalf("there is no configuration in %s", file)
	}
	return loadText(t, strings.ReplaceAll(block, "\n    ", "\n"), variables)
}

// The examples of deploy/ are configurations too.
func TestDeploy_TheKubernetesMigrationLoadsItsConfigurationFromTheURLAlone(t *testing.T) {
	if _, err := deployed(t, "kubernetes-migrate.yaml", map[string]string{"DATABASE_URL": testDatabaseURL}); err != nil {
		t.Error(err)
	}
}

func TestDeploy_TheKubernetesConfigurationLoads(t *testing.T) {
	cfg, err := deployed(t, "kubernetes.yaml", map[string]string{
		"DATABASE_URL": testDatabaseURL, "WEBHOOK_AGENT_KEY": strings.Repeat("ab", 32), "WEBHOOK_AGENT_TOKEN": strings.Repeat("t", 32),
	})
	if err != nil || len(cfg.Security.Keys) != 1 || cfg.Admin.Token.IsZero() {
		t.Errorf("%v", err)
	}
}

func FuzzLoadConfig(f *testing.F) {
	example, err := os.ReadFile("../../config.example.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(example))
	f.Add("[delivery]\nretries = [\"5s\", 1, {}]\nconcurency = 1")
	f.Add("[security]\nkeys = [\"sentinel\"]\n[admin]\ntoken = \"sentinel\"\nhosts = [\"a:1\"]")
	f.Add("[[endpoint]]\nurl = \"https://u:sentinel@h\"\n[[endpoint]]\nevents = []")
	f.Add("database.url = \"postgres://a:sentinel@h/d\"\n[outbox]\nretention = \"1d\"\ncolumns.id = \"id\"")
	path := filepath.Join(f.TempDir(), "fuzz.toml")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "file:") {
			return // files of this machine are no part of the input
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := Load(Input{Path: path, Environ: []string{"X=value of X", "DATABASE_URL=" + testDatabaseURL, "KEY=" + strings.Repeat("ab", 32)}})
		if (cfg == nil) != (err != nil) {
			t.Fatalf("configuration %v with error %v", cfg, err)
		}
		if err == nil {
			_ = cfg.OutboxConfig()
			return
		}
		for _, line := range strings.Split(err.Error(), "\n") {
			if !strings.HasPrefix(line, path+": ") || len(line) > len(path)+700 {
				t.Errorf("a problem is no line of its own: %q", line)
			}
		}
	})
}
