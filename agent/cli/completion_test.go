package cli

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

var secondsAgo = regexp.MustCompile(` \d+s ago`)

// completions returns what the shell is offered, one candidate with its description in each line.
func completions(t *testing.T, config string, args ...string) []string {
	t.Helper()
	var out, errs bytes.Buffer
	status := Main(t.Context(), append([]string{"__complete", "--config", config}, args...), &out, &errs)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if status != exitFine || !strings.HasPrefix(lines[len(lines)-1], ":") || strings.Contains(errs.String(), "rror") {
		t.Fatalf("%q: status %d, %s%s", args, status, out.String(), errs.String())
	}
	return lines[:len(lines)-1]
}

// inTime calls complete until it returns nil. A machine that is busy may take longer than
// completionTimeout for an answer now and then.
func inTime(t *testing.T, complete func() error) {
	t.Helper()
	testenv.Eventually(t, 20*completionTimeout, complete)
}

func TestCompletion_OffersIDsStatusesAndTypesFromTheDatabase(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret, disabled_at, disabled_reason) values
	    ('ep_1', 'venue_a', 'https://a.example/hook?key=sentinel', '{*}', 's', null, null),
	    ('ep_2', 'venue_b', 'https://b.example/', '{*}', 's', now(), 'manual'),
	    (E'ep_\x1b[31m', E'venue_\u202e', 'https://c.example/', '{*}', 's', null, null), ('ep_ blank', 'venue c', 'https://c.example/', '{*}', 's', null, null)`)
	addDeliveries(t, env, "ep_1")
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created) select 'evt_1' || i, 'ep_2', 'venue_b', 'lead.created', 'missed', now() - interval '1 day' from generate_series(10, 99) i`)
	env.Exec(t, `insert into webhooks.replays (id, endpoint_id, venue, statuses, state, finished) values ('rpl_1', 'ep_1', 'venue_a', '{missed}', 'done', now())`)
	config := configFile(t, env)
	for line, want := range map[string]string{
		"endpoints show ep_":                            "ep_1\ta.example, venue_a|ep_2\tb.example, venue_b, disabled",
		"endpoints show ep_2":                           "",
		"endpoints show ep_1 ":                          "",
		"endpoints rotate-secret ep":                    "ep_1\ta.example, venue_a|ep_2\tb.example, venue_b, disabled",
		"deliveries list --endpoint ep":                 "ep_1\ta.example, venue_a|ep_2\tb.example, venue_b, disabled",
		"deliveries list --venue venue_b --endpoint ep": "ep_2\tb.example, venue_b, disabled",
		"deliveries list --venue v":                     "venue_a|venue_b",
		"endpoints list --venue venue_b":                "venue_b",
		"deliveries show evt_4":                         "evt_4\tlead.created, venue_a, 4h ago",
		"deliveries show evt_4 ep_":                     "ep_1\ta.example, venue_a|ep_2\tb.example, venue_b, disabled",
		"deliveries replay evt_3 evt_4":                 "evt_4\tlead.created, venue_a, 4h ago",
		"replays cancel r":                              "rpl_1\tdone, ep_1, 0s ago",
		"deliveries list --status ":                     "pending|succeeded|failed|missed",
		"deliveries list --status failed,m":             "failed,missed",
		"deliveries list --status failed,":              "failed,pending|failed,succeeded|failed,missed",
		"deliveries replay --status ":                   "missed|failed|succeeded",
		"replays list --state p":                        "pending|paused",
		"endpoints list --state ":                       "enabled|disabled|unusable",
		"deliveries list --type payment":                "payment.*\tall of payment|payment.received\t",
		"endpoints add --events lead.*,pay":             "lead.*,payment.*\tall of payment|lead.*,payment.received\t",
		"status --color ":                               "auto|always|never",
		"deliveries list --since to":                    "today",
		"listen --status ":                              "",
		"status ":                                       "",
	} {
		args := strings.Split(line, " ")
		inTime(t, func() error {
			got := strings.Join(completions(t, config, args...), "|")
			got = secondsAgo.ReplaceAllString(got, " 0s ago") // the test takes some, and more on a busy machine
			if strings.HasSuffix(want, "\t") {                // the description is the catalogue's
				got = got[:min(len(got), len(want))]
			}
			if got != want {
				return fmt.Errorf("%s: %q, want %q", line, got, want)
			}
			return nil
		})
	}
	inTime(t, func() error {
		if got := completions(t, config, "deliveries", "show", "evt_1"); len(got) != completedEvents-3 {
			return fmt.Errorf("of 94 events the newest 50 are offered, got %d that begin with evt_1", len(got))
		}
		return nil
	})
}

func TestCompletion_IsSilentAndQuickWhenTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for name, config := range map[string]string{
		"refuses":       `database.url = "postgres://agent@127.0.0.1:1/db"`,
		"never answers": `database.url = "postgres://agent@` + silent.Addr().String() + `/db"`,
		"wrong file":    `nosuch = 1`,
	} {
		began := time.Now()
		if got := completions(t, agenttest.WriteFile(t, config), "endpoints", "show", "ep"); len(got) > 0 {
			t.Errorf("%s: %v", name, got)
		}
		if took := time.Since(began); took > 3*completionTimeout {
			t.Errorf("%s: it took %v", name, took)
		}
	}
	if got := completions(t, filepath.Join(t.TempDir(), "none.toml"), "endpoints", "show", "ep"); len(got) > 0 {
		t.Errorf("without a file: %v", got)
	}
}

// A real bash runs the script that the program prints, which runs the program.
func TestCompletion_WorksInBash(t *testing.T) {
	t.Parallel()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Fatal("this test needs bash: apt-get install bash")
	}
	env := testenv.NewDB(t)
	env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ('ep_A1', 'venue_a', 'https://a.example/', '{*}', 's'), ('ep_A2', 'venue_a', 'https://a.example/', '{*}', 's')`)
	dir := t.TempDir()
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(dir, program))
	}
	if err != nil {
		t.Fatal(err)
	}
	const script = `
# What the package bash-completion and an interactive shell have of use here.
_get_comp_words_by_ref() { words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; cur=${COMP_WORDS[COMP_CWORD]}; prev=${COMP_WORDS[COMP_CWORD-1]}; }
__ltrim_colon_completions() { :; }
compopt() { :; }
source <(webhook-agent completion bash)
COMP_WORDS=(webhook-agent endpoints show ep_) COMP_CWORD=3 COMP_LINE='webhook-agent endpoints show ep_' COMP_POINT=31 COMP_TYPE=63
__start_webhook-agent
printf '%s\n' "${COMPREPLY[@]}"
`
	cmd := exec.CommandContext(t.Context(), bash, "--norc", "-c", script)
	cmd.Env = append(os.Environ(), "HOME="+dir, "PATH="+dir+":"+os.Getenv("PATH"), "WEBHOOK_AGENT_CONFIG="+configFile(t, env))
	text, err := cmd.CombinedOutput()
	if lines := strings.Fields(string(text)); err != nil || len(lines) < 2 || lines[0] != "ep_A1" || !strings.Contains(string(text), "ep_A2") {
		t.Errorf("%v: %s", err, text)
	}
}
