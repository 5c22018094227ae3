package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// cli runs a command line on a test's database and returns the exit status and what it printed.
func cli(t *testing.T, env *testenv.DB, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	return cliContext(t, t.Context(), env, args...)
}

func cliContext(t *testing.T, ctx context.Context, env *testenv.DB, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = Main(ctx, append([]string{"--config", configFile(t, env)}, args...), &out, &errs)
	return status, out.String(), errs.String()
}

// configFile writes a configuration for a test's database and returns its path.
func configFile(t *testing.T, env *testenv.DB) string {
	t.Helper()
	return agenttest.WriteFile(t, agenttest.ConfigText(env, env.LeastURL))
}

// succeedWith runs a command line with a configuration of its own. It must end with status 0.
func succeedWith(t *testing.T, config string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if status := Main(t.Context(), append([]string{"--config", agenttest.WriteFile(t, config)}, args...), &out, &errs); status != exitFine || errs.Len() > 0 {
		t.Fatalf("%q ended with status %d: %s%s", args, status, out.String(), errs.String())
	}
	return out.String()
}

// succeed runs a command line that must end with status 0 and returns what it printed.
func succeed(t *testing.T, env *testenv.DB, args ...string) string {
	t.Helper()
	status, stdout, stderr := cli(t, env, args...)
	if status != exitFine || stderr != "" {
		t.Fatalf("%q ended with status %d: %s%s", args, status, stdout, stderr)
	}
	return stdout
}

func TestMain_BadUsageIsOneSentenceAndStatus2(t *testing.T) {
	for line, want := range map[string]string{
		"chek":                          `unknown command "chek"; did you mean check?; see webhook-agent --help`,
		"delivery":                      `unknown command "delivery"; did you mean webhook-agent deliveries list?; see webhook-agent --help`,
		"delivery show evt_1":           `unknown command "delivery"; did you mean webhook-agent deliveries show evt_1?; see webhook-agent --help`,
		"delivery --since 1h":           `unknown command "delivery"; did you mean webhook-agent deliveries list?; see webhook-agent --help`,
		"endpoint list":                 `unknown command "endpoint"; did you mean webhook-agent endpoints list?; see webhook-agent --help`,
		"replay":                        `unknown command "replay"; did you mean webhook-agent deliveries replay?; see webhook-agent --help`,
		"event":                         `unknown command "event"; did you mean webhook-agent deliveries list?; see webhook-agent --help`,
		"delete":                        `unknown command "delete"; did you mean webhook-agent endpoints remove ENDPOINT_ID?; see webhook-agent --help`,
		"rm ep_1":                       `unknown command "rm"; did you mean webhook-agent endpoints remove ENDPOINT_ID?; see webhook-agent --help`,
		"ls":                            `unknown command "ls"; did you mean webhook-agent endpoints list or webhook-agent deliveries list?; see webhook-agent --help`,
		"get":                           `unknown command "get"; did you mean webhook-agent deliveries show EVENT_ID or webhook-agent endpoints show ENDPOINT_ID?; see webhook-agent --help`,
		"describe":                      `unknown command "describe"; did you mean webhook-agent deliveries show EVENT_ID or webhook-agent endpoints show ENDPOINT_ID?; see webhook-agent --help`,
		"retry":                         `unknown command "retry"; did you mean webhook-agent deliveries replay?; see webhook-agent --help`,
		"logs":                          `unknown command "logs"; did you mean webhook-agent deliveries list?; see webhook-agent --help`,
		"start":                         `unknown command "start"; did you mean webhook-agent run?; see webhook-agent --help`,
		"doctor":                        `unknown command "doctor"; did you mean webhook-agent check?; see webhook-agent --help`,
		"endpoints rm ep_1":             `unknown command "rm"; did you mean webhook-agent endpoints remove ENDPOINT_ID?; see webhook-agent endpoints --help`,
		"deliveries resend":             `unknown command "resend"; did you mean webhook-agent deliveries replay?; see webhook-agent deliveries --help`,
		"replays delete rpl_1":          `unknown command "delete"; did you mean webhook-agent replays cancel ID?; see webhook-agent replays --help`,
		"endpoint rm ep_1":              `unknown command "endpoint"; did you mean webhook-agent endpoints remove ENDPOINT_ID?; see webhook-agent --help`,
		"webhook add --url x":           `unknown command "webhook"; did you mean webhook-agent endpoints add?; see webhook-agent --help`,
		"webhooks add":                  `unknown command "webhooks"; did you mean webhook-agent endpoints add?; see webhook-agent --help`,
		"event show evt_1":              `unknown command "event"; did you mean webhook-agent deliveries show evt_1?; see webhook-agent --help`,
		"replay list":                   `unknown command "replay"; did you mean webhook-agent replays list?; see webhook-agent --help`,
		"replay evt_1":                  `unknown command "replay"; did you mean webhook-agent deliveries replay?; see webhook-agent --help`,
		"help stauts":                   `unknown command "stauts"; did you mean status?; see webhook-agent --help`,
		"help endpoints rm":             `unknown command "rm"; did you mean webhook-agent endpoints remove ENDPOINT_ID?; see webhook-agent endpoints --help`,
		"completion bsh":                `unknown command "bsh"; did you mean bash or zsh or fish?; see webhook-agent completion --help`,
		"listen --forward http://x/":    `unknown flag "--forward"; did you mean --forward-to?; see webhook-agent listen --help`,
		"deliveries list --interval 5s": `--interval needs --watch or --follow; see webhook-agent deliveries list --help`,
		"endpoints add --venue " + strings.Repeat("v", 513) + " --url https://h.example/ --events *": `--venue has more than 512 bytes; shorten it; see webhook-agent endpoints add --help`,
		"qwertz":                                                    `unknown command "qwertz"; see webhook-agent --help`,
		"deliveries list --endpont ep_1":                            `unknown flag "--endpont"; did you mean --endpoint?; see webhook-agent deliveries list --help`,
		"deliveries list --from 1h":                                 `unknown flag "--from"; did you mean --since?; see webhook-agent deliveries list --help`,
		"status -n 5":                                               `unknown flag "-n"; see webhook-agent status --help`,
		"endpoints list -o json":                                    `unknown flag "-o"; did you mean --json?; see webhook-agent endpoints list --help`,
		"endpoints list --limit":                                    `--limit needs a value; see webhook-agent endpoints list --help`,
		"endpoints list --all=x":                                    `--all is "x", must be true or false, or without a value; see webhook-agent endpoints list --help`,
		"endpoints list --limit -1":                                 `--limit is -1, must be between 1 and 10000; --all lists everything; see webhook-agent endpoints list --help`,
		"deliveries list --limit 10001":                             `--limit is 10001, must be between 1 and 10000; --all lists everything; see webhook-agent deliveries list --help`,
		"replays list --limit 99999999999999999999":                 `--limit is "99999999999999999999", must be a whole number; see webhook-agent replays list --help`,
		"replays list --all --limit 3":                              `--all and --limit exclude each other; leave one out; see webhook-agent replays list --help`,
		"replays list --before odd":                                 `--before is no cursor of this list; copy it from the end of the page before; see webhook-agent replays list --help`,
		"replays list --state odd":                                  `--state has "odd", must be of pending, running, paused, done, failed, canceled; see webhook-agent replays list --help`,
		"replays pace rpl_1 --per-second -1":                        `--per-second is -1, must be between 0 and 10000; see webhook-agent replays pace --help`,
		"status --color blue":                                       `--color is "blue", must be auto or always or never; see webhook-agent status --help`,
		"status --interval 5s":                                      `--interval needs --watch; see webhook-agent status --help`,
		"status -w --interval 1ms":                                  `--interval is "1ms", must be a duration between 1s and 1h, like 5s; see webhook-agent status --help`,
		"deliveries list -f -w":                                     `--follow and --watch exclude each other; leave one out; see webhook-agent deliveries list --help`,
		"deliveries list --type le*d":                               `--type is "le*d", which is no event type; use one such as lead.created, lead.* or *; see webhook-agent deliveries list --help`,
		"deliveries show ep_01K5M2AAAAAAAABAAAAAAAQ8ZC":             `argument 1 is the id of an endpoint; write that of an event; see webhook-agent deliveries show --help`,
		"endpoints show rpl_01K5M2AAAAAAAABAAAAAAAQ8ZC":             `argument 1 is the id of a replay; write that of an endpoint; see webhook-agent endpoints show --help`,
		"replays show evt_01K5M2AAAAAAAABAAAAAAAQ8ZC":               `argument 1 is the id of an event; write that of a replay; see webhook-agent replays show --help`,
		"deliveries list --endpoint evt_01K5M2AAAAAAAABAAAAAAAQ8ZC": `--endpoint is the id of an event; write that of an endpoint; see webhook-agent deliveries list --help`,
		"listen --addr 9000":                                        `--addr is "9000", must be an address with a port, like 127.0.0.1:9000; see webhook-agent listen --help`,
		"token --venue v --life 1y":                                 `--life is "1y", must be a duration between 1s and 15m; see webhook-agent token --help`,
		"endpoints lst":                                             `unknown command "lst"; did you mean list or test?; see webhook-agent endpoints --help`,
		"status now":                                                `webhook-agent status takes no arguments, got 1 arguments; see webhook-agent status --help`,
		"endpoints show":                                            `webhook-agent endpoints show takes an endpoint id, got 0 arguments; see webhook-agent endpoints show --help`,
		"deliveries show a b c":                                     `webhook-agent deliveries show takes an event id and may take an endpoint id, got 3 arguments; see webhook-agent deliveries show --help`,
		"status --nosuch":                                           `unknown flag "--nosuch"; see webhook-agent status --help`,
		"endpoints list --limit x":                                  `--limit is "x", must be a whole number; see webhook-agent endpoints list --help`,
		"endpoints list --limit 0":                                  `--limit is 0, must be between 1 and 10000; --all lists everything; see webhook-agent endpoints list --help`,
		"endpoints list --state odd":                                `--state is "odd", must be enabled or disabled or unusable; see webhook-agent endpoints list --help`,
		"endpoints add --venue v":                                   `--venue, --url and --events are required; see webhook-agent endpoints add --help`,
		"deliveries list --status ok":                               `--status has "ok", must be of pending, succeeded, failed, missed; see webhook-agent deliveries list --help`,
		"deliveries list --since soon":                              `--since is "soon", must be ` + acceptedTimes + `; see webhook-agent deliveries list --help`,
		"deliveries list --since 1h --until 2h":                     `--since is not before --until; see webhook-agent deliveries list --help`,
		"deliveries replay":                                         `name event ids, or an endpoint by --endpoint; see webhook-agent deliveries replay --help`,
		"deliveries replay evt_1 --since 1h":                        `--since and --until are for a whole endpoint, not for single events; see webhook-agent deliveries replay --help`,
		"deliveries replay evt_1 --status pending":                  `--status has "pending", must be of missed, failed, succeeded; see webhook-agent deliveries replay --help`,
		"endpoints rotate-secret ep_1 --overlap 1y":                 `--overlap is "1y", must be a duration between 0s and 30d; see webhook-agent endpoints rotate-secret --help`,
		"listen --status 700":                                       `--status is 700, must be between 200 and 599; see webhook-agent listen --help`,
		"status --config /no/such.toml":                             `/no/such.toml: the configuration file cannot be read: no such file or directory; name another with --config, or write one by webhook-agent init`,
		"listen --forward-to localhost:3000":                        `--forward-to is "localhost:3000", must be a URL such as http://localhost:3000/hook; see webhook-agent listen --help`,
		"listen --forward-to http://u:p@localhost/":                 `--forward-to has credentials or a fragment, which are not sent; remove them; see webhook-agent listen --help`,
		"listen --forward-to http://h/ --status 500":                `--status and --forward-to exclude each other: with --forward-to the app's status is the answer; see webhook-agent listen --help`,
	} {
		var stdout, stderr bytes.Buffer
		status := Main(t.Context(), strings.Fields(line), &stdout, &stderr)
		if got := stderr.String(); status != exitUsage || got != "webhook-agent: "+want+"\n" || stdout.Len() > 0 {
			t.Errorf("%s: status %d\n got %s%s\nwant webhook-agent: %s", line, status, stdout.String(), got, want)
		}
	}
}

func TestMain_RefusesEmptyFlagsAndTextThatIsNotUTF8(t *testing.T) {
	add := func(more ...string) []string {
		return append([]string{"endpoints", "add", "--venue", "v", "--url", "https://h.example/", "--events", "*"}, more...)
	}
	const empty, noText = " is empty; give it a value, or leave it out", " is not valid UTF-8, or has a zero byte; write it in UTF-8"
	for _, test := range []struct {
		args []string
		want string
	}{
		{add("--secret", ""), "--secret" + empty},
		{[]string{"endpoints", "rotate-secret", "ep_1", "--secret="}, "--secret" + empty},
		{[]string{"listen", "--status", "700", "--secret", ""}, "--secret" + empty},
		{[]string{"deliveries", "replay", "evt_1", "--endpoint", ""}, "--endpoint" + empty},
		{[]string{"deliveries", "replay", "--endpoint", "ep_1", "--since", ""}, "--since" + empty},
		{[]string{"deliveries", "list", "--status", ""}, "--status" + empty},
		{[]string{"endpoints", "list", "--venue", ""}, "--venue" + empty},
		{add("--venue", "a\xff"), "--venue" + noText},
		{add("--url", "https://h.example/\xff"), "--url" + noText},
		{add("--events", "a\xff"), "--events" + noText},
		{add("--description", "a\x00"), "--description" + noText},
		{[]string{"endpoints", "show", "ep\xff"}, "argument 1" + noText},
		{[]string{"deliveries", "show", "evt_1", "ep\x00"}, "argument 2" + noText},
		{[]string{"deliveries", "list", "--before", "\xff"}, "--before" + noText},
		{[]string{"endpoints", "show", " "}, "argument 1 is blank; write the id of the endpoint"},
		{[]string{"deliveries", "show", "evt_1 "}, "argument 1 begins or ends with a blank, or has an invisible character; remove it"},
		{[]string{"deliveries", "show", "evt_1", "ep\n1"}, "argument 2 begins or ends with a blank, or has an invisible character; remove it"},
		{[]string{"deliveries", "list", "--venue", " venue_a"}, "--venue begins with a blank or has an invisible character; remove it"},
		{[]string{"endpoints", "list", "--venue", "  "}, "--venue is blank; write the id of the venue"},
		{[]string{"deliveries", "list", "--endpoint", "ep_1 "}, "--endpoint begins or ends with a blank, or has an invisible character; remove it"},
		{add("--venue", " "), "--venue is blank; write the id of the venue"},
	} {
		var stdout, stderr bytes.Buffer
		status := Main(t.Context(), test.args, &stdout, &stderr)
		if got := stderr.String(); status != exitUsage || !strings.HasPrefix(got, "webhook-agent: "+test.want+"; see webhook-agent ") {
			t.Errorf("%q: status %d, %s", test.args, status, got)
		}
	}
}

func TestMain_AllProblemsOfTheConfigurationAreOneLineEach(t *testing.T) {
	path := agenttest.WriteFile(t, "nosuch = 1\n[log]\nformat = 'xml'\n[database]\nurl = 'postgres://u:sentinel@[h'")
	t.Setenv("WEBHOOK_AGENT_CONFIG", path)
	for _, command := range []string{"run", "check", "migrate", "status", "endpoints list", "deliveries list"} {
		var stdout, stderr bytes.Buffer
		status := Main(t.Context(), strings.Fields(command), &stdout, &stderr)
		lines := strings.Split(strings.TrimSuffix(stderr.String(), "\n"), "\n")
		if status != exitUsage || len(lines) != 3 || strings.Contains(stderr.String(), "sentinel") {
			t.Errorf("%s: status %d, %d lines: %s", command, status, len(lines), stderr.String())
		}
		for _, line := range lines {
			if !strings.HasPrefix(line, "webhook-agent: "+path+": ") {
				t.Errorf("%s: a line without the file: %s", command, line)
			}
		}
	}
}

func TestMain_EveryCommandHasAnExampleThatParses(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		if cmd.Short == "" || cmd.Example == "" {
			t.Errorf("%s has no short description or no example", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Example) {
			line, _, _ = strings.Cut(strings.TrimSpace(line), "   ") // remarks stand behind spaces
			_, line, found := strings.Cut(line, "webhook-agent ")
			if !found {
				t.Errorf("%s: an example without the program: %s", cmd.CommandPath(), line)
				continue
			}
			line, _, _ = strings.Cut(line, " | ")
			line, _, _ = strings.Cut(line, " > ")
			root := (&app{}).rootCommand()
			target, args, err := root.Find(strings.Fields(line))
			if err == nil {
				err = target.ParseFlags(args)
			}
			if err == nil {
				err = target.ValidateArgs(target.Flags().Args())
			}
			if err != nil || !target.Runnable() {
				t.Errorf("%s: the example %q does not parse: %v", cmd.CommandPath(), line, err)
			}
		}
	}
	walk((&app{}).rootCommand())
}

func TestMain_VersionHelpAndCompletionNeedNoConfiguration(t *testing.T) {
	for line, want := range map[string]string{
		"version":                  "webhook-agent dev",
		"version --json":           `"version": "dev"`,
		"":                         "Available Commands:",
		"endpoints":                "rotate-secret",
		"deliveries replay --help": "--dry-run",
		"completion bash":          "__start_webhook-agent",
	} {
		var stdout, stderr bytes.Buffer
		if status := Main(t.Context(), strings.Fields(line), &stdout, &stderr); status != exitFine || !strings.Contains(stdout.String(), want) || stderr.Len() > 0 {
			t.Errorf("%q: status %d, does not say %q: %s%s", line, status, want, stdout.String(), stderr.String())
		}
	}
}

func TestMain_ADatabaseThatDoesNotAnswerIsOneSentenceAndStatus1(t *testing.T) {
	path := agenttest.WriteFile(t, `database.url = "postgres://agent:sentinel@127.0.0.1:1/db"`)
	for _, command := range []string{"status", "endpoints list", "deliveries show evt_1", "migrate"} {
		var stdout, stderr bytes.Buffer
		status := Main(t.Context(), append([]string{"--config", path}, strings.Fields(command)...), &stdout, &stderr)
		text := stderr.String()
		if status != exitFailed || strings.Count(text, "\n") != 1 || !strings.Contains(text, "PostgreSQL at 127.0.0.1:1: cannot connect") || strings.Contains(text, "sentinel") {
			t.Errorf("%s: status %d: %s", command, status, text)
		}
	}
	var stdout, stderr bytes.Buffer
	if status := Main(t.Context(), []string{"--config", path, "check"}, &stdout, &stderr); status != exitFailed || !strings.Contains(stdout.String(), "fail  PostgreSQL at 127.0.0.1:1") || stderr.Len() > 0 {
		t.Errorf("check: status %d: %s%s", status, stdout.String(), stderr.String())
	}
}

func TestMain_AnEndedContextIsAnInterruption(t *testing.T) {
	env := testenv.NewDB(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if status, _, stderr := cliContext(t, ctx, env, "status"); status != exitFailed || stderr != "webhook-agent: interrupted\n" {
		t.Errorf("status %d: %s", status, stderr)
	}
}

func TestMigrate_SaysWhatItDidAndPrintsItsSQL(t *testing.T) {
	env := testenv.NewDB(t)
	owner := agenttest.ConfigText(env, env.URL)
	if out := succeedWith(t, owner, "migrate"); !strings.Contains(out, "already") {
		t.Errorf("a current schema: %s", out)
	}
	sql := succeedWith(t, owner, "migrate", "--print")
	env.Exec(t, `drop schema webhooks cascade`)
	env.Exec(t, `drop publication webhooks_outbox, webhooks_outbox_endpoints`)
	env.Exec(t, `create schema webhooks`)
	if out := succeedWith(t, owner, "migrate", "--dry-run"); !strings.HasPrefix(out, "the schema webhooks has no version yet and would have version") {
		t.Errorf("what would be done in a schema that is empty: %s", out)
	}
	if out := succeedWith(t, owner, "migrate"); !strings.HasPrefix(out, "the schema webhooks had no version and has version") {
		t.Errorf("a schema that was empty: %s", out)
	}
	env.Exec(t, `drop schema webhooks cascade`)
	env.Exec(t, `drop publication webhooks_outbox, webhooks_outbox_endpoints`)
	if out := succeedWith(t, owner, "migrate", "--json"); agenttest.Decode[map[string]int](t, out)["from"] != 0 {
		t.Errorf("a new schema: %s", out)
	}
	for _, want := range []string{"create table webhooks.outbox", "create publication", "schema_version"} {
		if !strings.Contains(sql, want) {
			t.Errorf("the printed SQL lacks %q", want)
		}
	}
}

func TestCheck_IsFineOnAReadyDatabaseAndFailsOnABrokenOne(t *testing.T) {
	env := testenv.NewDB(t)
	out := succeed(t, env, "check")
	if !strings.Contains(out, "ok    schema webhooks: version") || !strings.Contains(out, "0 to put right") {
		t.Errorf("a ready database:\n%s", out)
	}
	env.Exec(t, `drop publication webhooks_outbox`)
	status, out, stderr := cli(t, env, "check")
	if status != exitFailed || stderr != "" || !strings.Contains(out, "fail  publication webhooks_outbox: it is missing in this database; remedy: run webhook-agent migrate") {
		t.Errorf("a broken database: status %d, %s%s", status, out, stderr)
	}
	status, out, _ = cli(t, env, "check", "--json")
	findings := agenttest.Decode[[]map[string]string](t, out)
	if status != exitFailed || len(findings) < 10 || findings[0]["level"] != "ok" {
		t.Errorf("as JSON: status %d, %s", status, out)
	}
}

func TestStatus_TellsWhatRuns(t *testing.T) {
	env := testenv.NewDB(t)
	out := succeed(t, env, "status")
	for _, want := range []string{"none: no agent has run", "does not exist", "0 enabled, 0 disabled, 0 unusable"} {
		if !strings.Contains(out, want) {
			t.Errorf("a new database does not say %q:\n%s", want, out)
		}
	}
	env.Exec(t, `insert into webhooks.checkpoint (slot, lsn, epoch, holder, system_identifier, timeline, database)
	    values ($1, '0/16B3748', 3, 'host-1', '1', 1, current_database())`, env.Slot)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/hook", "*")
	env.Exec(t, `update webhooks.endpoints set disabled_at = now(), disabled_reason = 'failures'`)
	env.Exec(t, `insert into webhooks.deliveries (event_id, endpoint_id, venue, type, status, created, next_attempt_at)
	    values ('evt_1', $1, 'venue_a', 'lead.created', 'pending', now() - interval '2 hours', now() + interval '5 minutes')`, id)
	out = succeed(t, env, "status")
	for _, want := range []string{"host-1, epoch 3, recorded up to 0/16B3748", "NOT CONNECTED", "1, the oldest from 2h ago, next attempt in", "0 enabled, 1 disabled",
		id, "too many failures in a row"} {
		if !strings.Contains(out, want) {
			t.Errorf("does not say %q:\n%s", want, out)
		}
	}
	overview := agenttest.Decode[map[string]any](t, succeed(t, env, "status", "--json"))
	if leader, _ := overview["leader"].(map[string]any); leader["holder"] != "host-1" {
		t.Errorf("as JSON: %v", overview)
	}
}

// What is suggested must be there.
func TestSubcommandRequired_SuggestsCommandLinesThatParse(t *testing.T) {
	for name, words := range meantCommands {
		for word := range words {
			root := (&app{}).rootCommand()
			cmd := root
			if name != root.Name() {
				cmd, _, _ = root.Find([]string{name})
			}
			if own, _, err := root.Find(append(strings.Fields(cmd.CommandPath())[1:], word)); err == nil && own != cmd && own.Name() == word {
				continue // it is a command by now
			}
			for _, line := range meantCommand(cmd, []string{word}) {
				if !strings.HasPrefix(line, "webhook-agent ") {
					continue // the name of a command that is like the word
				}
				line = strings.NewReplacer("ENDPOINT_ID", "ep_1", "EVENT_ID", "evt_1", " ID", " rpl_1").Replace(strings.TrimPrefix(line, "webhook-agent "))
				target, args, err := root.Find(strings.Fields(line))
				if err == nil {
					err = target.ParseFlags(args)
				}
				if err == nil {
					err = target.ValidateArgs(target.Flags().Args())
				}
				if err != nil || target == root {
					t.Errorf("%s %s: the suggestion %q does not parse: %v", name, word, line, err)
				}
			}
		}
	}
}

func TestMigrate_DryRunAndPrintFromSayWhatADatabaseStillNeeds(t *testing.T) {
	env := testenv.NewDB(t)
	owner := agenttest.ConfigText(env, env.URL)
	if out := succeedWith(t, owner, "migrate", "--dry-run"); !strings.Contains(out, "already") || !strings.HasSuffix(out, "nothing was changed\n") {
		t.Errorf("a current schema: %s", out)
	}
	env.Exec(t, `update webhooks.schema_version set version = 11, compatible = null`)
	out := succeedWith(t, owner, "migrate", "--dry-run")
	for _, want := range []string{"has version 11 and would have version", "012_unsent.sql: contraction, binaries of schema 12 or newer work with it",
		"    locks webhooks.deliveries (access exclusive): nobody else reads it or writes to it until it is done; about 0 rows",
		"    locks webhooks.deliveries (share update exclusive): others read it and write to it, and VACUUM waits until it is done; about 0 rows",
		"014_log.sql: ", "    costs: reads webhooks.deliveries twice", "019_migrated.sql: expansion, binaries of schema 18 or newer work with it"} {
		if !strings.Contains(out, want) {
			t.Errorf("--dry-run does not say %q:\n%s", want, out)
		}
	}
	plan := agenttest.Decode[outbox.MigrationPlan](t, succeedWith(t, owner, "migrate", "--dry-run", "--json"))
	if plan.From != 11 || plan.To != outbox.SchemaVersion() || len(plan.Migrations) != plan.To-11 {
		t.Errorf("as JSON: %+v", plan)
	}
	sql := succeedWith(t, owner, "migrate", "--print", "--from", "17")
	if strings.Contains(sql, "017_") || !strings.Contains(sql, "-- 018_compatible.sql") || !strings.Contains(sql, "create publication") {
		t.Errorf("--print --from 17:\n%s", sql)
	}
	env.Exec(t, `update webhooks.schema_version set version = 999, compatible = 1`)
	if out := succeedWith(t, owner, "migrate"); !strings.Contains(out, "has version 999 already, which is newer than this binary") {
		t.Errorf("a newer schema: %s", out)
	}
	if out := succeed(t, env, "status"); !strings.Contains(out, "version 999, migrated ") || !strings.Contains(out, "; upgrade this binary") {
		t.Errorf("status: %s", out)
	}
	for _, args := range [][]string{{"--from", "3"}, {"--print", "--from", "-1"}, {"--print", "--from", "1000"}, {"--print", "--dry-run"}, {"--print-grants", "--dry-run"}} {
		if status, _, stderr := cli(t, env, append([]string{"migrate"}, args...)...); status != exitUsage || !strings.Contains(stderr, "--") {
			t.Errorf("migrate %v: status %d, %s", args, status, stderr)
		}
	}
}
