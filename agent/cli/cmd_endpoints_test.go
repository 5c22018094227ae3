package cli

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

func TestEndpoints_ASecretMayStandInAVariableThatLooksLikeAKey(t *testing.T) {
	env := testenv.NewDB(t)
	t.Setenv("WEBHOOK_AGENT_ENDPOINT_HOOK", "the first secret")
	succeed(t, env, "endpoints", "add", "--venue", "v", "--url", "https://h.example/", "--events", "*", "--secret", "env:WEBHOOK_AGENT_ENDPOINT_HOOK")
	if stored := testenv.QueryOne[string](t, env, `select secret from webhooks.endpoints`); stored != "the first secret" {
		t.Errorf("the secret is %q", stored)
	}
	id := testenv.QueryOne[string](t, env, `select id from webhooks.endpoints`)
	t.Setenv("WEBHOOK_AGENT_ENDPOINT_HOOK", "the second secret")
	succeed(t, env, "endpoints", "rotate-secret", id, "--secret", "env:WEBHOOK_AGENT_ENDPOINT_HOOK")
	if stored := testenv.QueryOne[string](t, env, `select secret from webhooks.endpoints`); stored != "the second secret" {
		t.Errorf("after the rotation the secret is %q", stored)
	}
	status, _, stderr := cli(t, env, "endpoints", "rotate-secret", id)
	if status != exitUsage || !strings.Contains(stderr, "WEBHOOK_AGENT_ENDPOINT_HOOK: [[endpoint]] has no form in the environment") {
		t.Errorf("status %d, %q where nothing refers to the variable", status, stderr)
	}
}

func TestEndpoints_FromAddToRemove(t *testing.T) {
	env := testenv.NewDB(t)
	if out := succeed(t, env, "endpoints", "list", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("no endpoint as JSON: %s", out)
	}
	out := succeed(t, env, "endpoints", "add", "--venue", "venue_a", "--url", "https://h.example/hook?key=sentinel", "--events", "lead.*,payment.received", "--description", "books")
	secretLine := regexp.MustCompile(`secret: (whsec_\S+)\n`).FindStringSubmatch(out)
	idMatch := regexp.MustCompile(`added (ep_\S+):`).FindStringSubmatch(out)
	if secretLine == nil || idMatch == nil || strings.Contains(out, "sentinel") {
		t.Fatalf("add prints: %s", out)
	}
	id, made := idMatch[1], secretLine[1]
	if stored := testenv.QueryOne[string](t, env, `select secret from webhooks.endpoints`); stored != made {
		t.Error("the secret that was printed is not the one that was stored")
	}
	if want := "webhook-agent endpoints show " + id + " --secret shows it again."; !strings.Contains(out, want) || !strings.Contains(succeed(t, env, "endpoints", "show", id, "--secret"), made) {
		t.Errorf("does not say %q, or does not do it: %s", want, out)
	}
	list := succeed(t, env, "endpoints", "list")
	show := succeed(t, env, "endpoints", "show", id)
	for _, want := range []string{id, "venue_a", "h.example", "lead.*,payment.received", "0/100", "enabled"} {
		if !strings.Contains(list, want) {
			t.Errorf("list does not say %q:\n%s", want, list)
		}
	}
	for _, want := range []string{"https://h.example\n", "lead.*, payment.received", "books", "0 in a row; at 100 the endpoint is disabled"} {
		if !strings.Contains(show, want) {
			t.Errorf("show does not say %q:\n%s", want, show)
		}
	}
	if all := list + show + succeed(t, env, "endpoints", "show", id, "--json") + succeed(t, env, "endpoints", "list", "--json"); strings.Contains(all, made) || strings.Contains(all, "sentinel") {
		t.Errorf("the secret or the URL's query is shown:\n%s", all)
	}

	for _, step := range []struct{ command, want string }{
		{"disable", "its events are kept as missed"},
		{"disable", "is disabled already"},
		{"show", "by hand"},
		{"enable", "deliveries replay --endpoint " + id + " sends what it missed and what failed"},
		{"enable", "is enabled already"},
		{"rotate-secret", "the former secret also signs until"},
		{"show", "former secret  also signs until"},
		{"rotate-secret", "the former secret also signs until"},
		{"show", "former secret  2 also sign, until 2"},
		{"rotate-secret --overlap 0s --secret again", "the former secret signs no more"},
		{"show --secret", "for libraries  whsec_YWdhaW4=\n"},
		{"show --secret --json", `"library_secret": "whsec_YWdhaW4="`},
		{"show --secret --json", `"secret": "again"`},
		{"rotate-secret --secret again", "has this secret already; nothing changed"},
		{"rotate-secret --secret again --overlap 0s", "has this secret already; nothing changed"},
		{"rotate-secret --secret other", "the former secret also signs until"},
		{"rotate-secret --secret again", "the former secret also signs until"},
		{"show", "former secret  also signs until"},
		{"rotate-secret --secret again --overlap 0s", "has this secret already; its former secrets sign no more"},
		{"show --json", `"previous_secret_until": null`},
		{"update --url https://new.example/hook?key=sentinel --events lead.created,payment.*", "updated " + id + ": lead.created, payment.* events of venue_a go to https://new.example\n"},
		{"show", "lead.created, payment.*\ndescription"},
		{"update --description=", "updated " + id},
		{"remove --yes", "removed " + id + "; nothing is pending for it"},
	} {
		words := strings.Fields(step.command)
		args := append([]string{"endpoints", words[0], id}, words[1:]...)
		if out := succeed(t, env, args...); !strings.Contains(out, step.want) {
			t.Errorf("%s does not say %q: %s", step.command, step.want, out)
		}
	}
	if n := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.endpoints`); n != 0 {
		t.Error("the endpoint was not removed")
	}
}

func TestEndpoints_RefusalsAreOneSentence(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/hook", "*")
	env.Exec(t, `update webhooks.endpoints set managed_by = 'file'`)
	add := func(url, events, secret string) []string {
		return []string{"endpoints", "add", "--venue", "venue_a", "--url", url, "--events", events, "--secret", secret}
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"endpoints", "show", "ep_x"}, `endpoint "ep_x": there is none with this id; webhook-agent endpoints list shows them`},
		{[]string{"endpoints", "test", "ep_x"}, `endpoint "ep_x": there is none with this id; webhook-agent endpoints list shows them`},
		{[]string{"endpoints", "update", id, "--description", "x"}, "endpoint " + id + ": it is managed by the configuration file; change its [[endpoint]] there and restart the agent"},
		{[]string{"endpoints", "update", "ep_x", "--description", "x"}, `endpoint "ep_x": there is none with this id; webhook-agent endpoints list shows them`},
		{[]string{"endpoints", "remove", id, "--yes"}, "endpoint " + id + ": it is managed by the configuration file; change its [[endpoint]] there and restart the agent"},
		{[]string{"endpoints", "rotate-secret", id}, "endpoint " + id + ": it is managed by the configuration file; change its [[endpoint]] there and restart the agent"},
		{add("ftp://h.example/sentinel", "*", "s"), "--url: the URL must begin with https://"},
		{add("https://h.example/", "le*d", "s"), `--events has "le*d", which is no event type; use types such as lead.created, lead.* or *`},
		{add("https://h.example/", "lead.created, payment.received", "s"), `--events has " payment.received", which begins or ends with a blank, or has an invisible character; remove it`},
		{add("https://h.example/", "lead.", "s"), `--events has "lead.", which is no event type; use types such as lead.created, lead.* or *`},
		{add("https://h.example/", "*", "whsec_sentinel!"), "--secret: the secret begins with whsec_ but is not standard base64 at character 15"},
		{add("https://h.example/", "*", "env:NO_SUCH_VARIABLE"), `--secret: the environment variable "NO_SUCH_VARIABLE" is not set`},
	} {
		status, _, stderr := cli(t, env, test.args...)
		wanted := exitFailed
		if strings.HasPrefix(test.want, "--") {
			wanted = exitUsage
		}
		if status != wanted || stderr != "webhook-agent: "+test.want+"\n" {
			t.Errorf("%q: status %d\n got %swant webhook-agent: %s", test.args, status, stderr, test.want)
		}
	}
}

// A secret with the prefix whsec_ is shown as it is, because libraries take it so. One that cannot
// sign is shown too, so that it can be corrected.
func TestEndpointsShow_ShowsASecretOnlyWhenAsked(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	for stored, library := range map[string]string{agenttest.Secret: agenttest.Secret, "'quoted'": ""} {
		env.Exec(t, `update webhooks.endpoints set secret = $1`, stored)
		got := agenttest.Decode[shownSecret](t, succeed(t, env, "endpoints", "show", id, "--secret", "--json"))
		if got.Secret != stored || got.LibrarySecret != library {
			t.Errorf("%s: %+v", stored, got)
		}
		for _, asked := range [][]string{nil, {"--json"}} {
			if out := succeed(t, env, append([]string{"endpoints", "show", id}, asked...)...); strings.Contains(out, stored) || strings.Contains(out, "for libraries") {
				t.Errorf("not asked for: %s", out)
			}
		}
	}
	env.Exec(t, `update webhooks.endpoints set secret = 'sealed:v1:0123456789abcdef:x'`)
	if status, out, stderr := cli(t, env, "endpoints", "show", id, "--secret"); status != exitFailed || out != "" || !strings.Contains(stderr, "endpoint "+id) {
		t.Errorf("sealed with a key that is missing: status %d, %s%s", status, out, stderr)
	}
}

func TestEndpointsShow_CountsTheFormerSecretsThatSign(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	env.Exec(t, `update webhooks.endpoints set secret = 'now', previous_secret = 'whsec_bad', previous_secret_until = now() + interval '1 hour',
		older_secrets = '{now,former,former}', older_secrets_until = array_fill(now() + interval '2 hours', array[3])`)
	if out := succeed(t, env, "endpoints", "show", id); !strings.Contains(out, "former secret  also signs until") {
		t.Errorf("of four former secrets one signs:\n%s", out)
	}
	if out := succeed(t, env, "endpoints", "show", id, "--json"); !strings.Contains(out, `"older_secrets_until": []`) {
		t.Errorf("as JSON: %s", out)
	}
	if out := succeed(t, env, "endpoints", "list", "--json"); !strings.Contains(out, `"older_secrets_until": []`) || strings.Contains(out, `"previous_secret_until": null`) {
		t.Errorf("in a list as JSON: %s", out)
	}
}

// TestEndpoints_ASecretThatWasGivenIsNotPrinted gives one out of sight, by a variable.
func TestEndpoints_ASecretThatWasGivenIsNotPrinted(t *testing.T) {
	env := testenv.NewDB(t)
	t.Setenv("HOOK_SECRET", "sentinel-secret")
	id := regexp.MustCompile(`added (ep_\S+):`).FindStringSubmatch(succeed(t, env, "endpoints", "add", "--venue", "venue_a", "--url", "https://h.example/", "--events", "*", "--secret", "env:HOOK_SECRET"))[1]
	for _, args := range [][]string{
		{"add", "--venue", "venue_a", "--url", "https://i.example/", "--events", "*", "--secret", "env:HOOK_SECRET"},
		{"add", "--venue", "venue_a", "--url", "https://j.example/", "--events", "*", "--secret", "env:HOOK_SECRET", "--json"},
		{"rotate-secret", id, "--secret", "env:HOOK_SECRET"},
	} {
		if out := succeed(t, env, append([]string{"endpoints"}, args...)...); strings.Contains(out, "sentinel") {
			t.Errorf("%q prints the secret: %s", args, out)
		}
	}
	if n := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.endpoints where secret = 'sentinel-secret'`); n != 3 {
		t.Errorf("%d endpoints have the secret", n)
	}
}

func TestEndpointsTest_SendsOneSignedSampleThatDoesNotCount(t *testing.T) {
	env := testenv.NewDB(t)
	customer := testenv.StartReceiver(t, agenttest.Secret)
	id := agenttest.AddEndpoint(t, env, "venue_a", customer.URL+"/hook?key=sentinel", "proposal.*")

	out := succeed(t, env, "endpoints", "test", id)
	if !strings.Contains(out, "took proposal.created") || !strings.Contains(out, "status 200") || strings.Contains(out, "sentinel") {
		t.Errorf("a success prints: %s", out)
	}
	received := customer.Wait(t, 1, agenttest.Patience)[0]
	if received.SignatureErr != nil || !strings.Contains(string(received.Body), `"type":"proposal.created"`) || !strings.Contains(string(received.Body), `"venue":"venue_a"`) {
		t.Errorf("received %s, signatures: %v", received.Body, received.SignatureErr)
	}

	customer.SetAnswer("/hook", testenv.Script(testenv.Answer{Status: 500, Body: "out of \x1b[31morder"}))
	status, out, stderr := cli(t, env, "endpoints", "test", id)
	if status != exitFailed || stderr != "" || !strings.Contains(out, "did not take proposal.created") || !strings.Contains(out, `it said: out of \x1b[31morder`) {
		t.Errorf("a failure: status %d, %s%s", status, out, stderr)
	}
	status, out, _ = cli(t, env, "endpoints", "test", id, "--json")
	if result := agenttest.Decode[manage.Sample](t, out); status != exitFailed || result.Succeeded || result.Code != 500 || result.Class != "http_status" {
		t.Errorf("a failure as JSON: status %d, %s", status, out)
	}
	for _, table := range []string{"deliveries", "attempts", "endpoint_health", "outbox"} {
		if n := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.`+table); n != 0 {
			t.Errorf("the tests left %d rows in %s", n, table)
		}
	}
}

func TestEndpointsTest_SignsWithTheFormerSecretDuringARotation(t *testing.T) {
	env := testenv.NewDB(t)
	customer := testenv.StartReceiver(t, agenttest.Secret)
	id := agenttest.AddEndpoint(t, env, "venue_a", customer.URL, "*")
	succeed(t, env, "endpoints", "rotate-secret", id, "--overlap", time.Hour.String())
	succeed(t, env, "endpoints", "test", id)
	if header := customer.Wait(t, 1, agenttest.Patience)[0].Header; header.Get("X-Quintago-Signature-Previous") == "" || len(strings.Fields(header.Get("Webhook-Signature"))) != 2 {
		t.Errorf("the former secret does not sign: %v", header)
	}
}

func TestEndpoints_RefuseWhatIsMostLikelyAMistake(t *testing.T) {
	env := testenv.NewDB(t)
	twin := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/hook", "*")
	other := agenttest.AddEndpoint(t, env, "venue_a", "https://other.example/hook", "*")
	add := func(url, events string) []string {
		return []string{"endpoints", "add", "--venue", "venue_a", "--url", url, "--events", events}
	}
	const fine = "https://new.example/"
	for _, test := range []struct {
		args       []string
		wrong      string // without --force
		status     int
		forcedNote string
	}{
		{add(fine, "lead.creatd"), `--events has "lead.creatd", which the catalogue of event types does not have; did you mean "lead.created"? Correct it, or take it with --force`, exitUsage,
			`note: --events has "lead.creatd", which the catalogue of event types does not have; it has "lead.created"`},
		{add(fine, "LEAD.CREATED"), `did you mean "lead.created"?`, exitUsage, `it has "lead.created"`},
		{add(fine, "Lead.*"), `did you mean "lead.*"?`, exitUsage, `it has "lead.*"`},
		{add(fine, "leed.*"), `did you mean "lead.*"?`, exitUsage, `it has "lead.*"`},
		{add("HTTPS://H.example:443/hook", "*"), "--url: venue venue_a has this URL already, as " + twin + "; change that one by webhook-agent endpoints update, or add another with --force", exitUsage,
			"note: " + twin + " has this URL as well, so its server gets each event once for each of them"},
		{[]string{"endpoints", "add", "--venue", "venue_a ", "--url", fine, "--events", "*"}, "--venue ends with a blank", exitUsage, "added ep_"},
		{[]string{"endpoints", "update", other, "--events", "lead.creatd"}, `did you mean "lead.created"?`, exitUsage, `it has "lead.created"`},
		{[]string{"endpoints", "update", other, "--url", "https://h.example/hook"}, "has this URL already, as " + twin, exitUsage, twin + " has this URL as well"},
		{[]string{"endpoints", "update", other}, "give --url, --events or --description", exitUsage, ""},
		{[]string{"endpoints", "remove", other}, "to remove an endpoint needs --yes where nobody can be asked", exitUsage, ""},
	} {
		status, _, stderr := cli(t, env, test.args...)
		if status != test.status || !strings.Contains(stderr, test.wrong) {
			t.Errorf("%q: status %d, %s", test.args, status, stderr)
		}
		if test.forcedNote == "" {
			continue
		}
		if out := succeed(t, env, append(test.args, "--force")...); !strings.Contains(out, test.forcedNote) {
			t.Errorf("%q with --force: %s", test.args, out)
		}
		env.Exec(t, `delete from webhooks.endpoints where id not in ($1, $2)`, twin, other)
		env.Exec(t, `update webhooks.endpoints set url = 'https://other.example/hook' where id = $1`, other)
	}
	if out := succeed(t, env, add(fine, "something.else")...); !strings.Contains(out, `note: --events has "something.else", which the catalogue of event types does not have; it gets nothing until the app writes such events`) {
		t.Errorf("an unknown type: %s", out)
	}
	if out := succeed(t, env, "endpoints", "update", other, "--url", "https://other.example/hook", "--json"); strings.Contains(out, "notes") {
		t.Errorf("an endpoint is its own twin: %s", out)
	}
}

func TestEndpointsRemove_AsksAndSaysWhatBecomesOfWhatIsPending(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/hook?key=sentinel", "*")
	addDeliveries(t, env, id)
	const left = "1 pending delivery is kept as missed"
	status, out, stderr := typed(t, env, "n\n", "endpoints", "remove", id[:len(id)-2])
	if want := "Remove " + id + " of venue_a, https://h.example? " + left + "; its log stays. endpoints disable keeps the endpoint. [y/N] nothing was done\n"; status != exitFailed || out != want || stderr != "" {
		t.Errorf("no: status %d, %s%s", status, out, stderr)
	}
	if testenv.QueryOne[int64](t, env, `select count(*) from webhooks.endpoints`) != 1 {
		t.Fatal("it was removed although the answer was no")
	}
	if status, out, stderr := typed(t, env, "yes\n", "endpoints", "remove", id); status != exitFine || !strings.Contains(out, "removed "+id+"; "+left+"\n") {
		t.Errorf("yes: status %d, %s%s", status, out, stderr)
	}
	if testenv.QueryOne[int64](t, env, `select count(*) from webhooks.endpoints`) != 0 {
		t.Error("it was not removed")
	}
}

func TestEndpoints_ShowTheLastSuccess(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	if out := succeed(t, env, "endpoints", "show", id); strings.Contains(out, "last success") {
		t.Errorf("without a success: %s", out)
	}
	addDeliveries(t, env, id)
	env.Exec(t, `update webhooks.deliveries set finished = now() - interval '2 hours' where status = 'succeeded'`)
	for _, args := range [][]string{{"show", id}, {"list"}} {
		if out := succeed(t, env, append([]string{"endpoints"}, args...)...); !strings.Contains(out, "2h ago") {
			t.Errorf("%q: %s", args, out)
		}
	}
	if out := succeed(t, env, "endpoints", "list", "--json"); strings.Contains(out, `"last_success_at": null`) {
		t.Errorf("as JSON: %s", out)
	}
}

// The agent leaves out a former secret that it cannot open.
func TestRotateSecret_SaysThatAFormerSecretWhoseKeyIsMissingDoesNotSign(t *testing.T) {
	env := testenv.NewDB(t)
	id := agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/hook", "*")
	keys, err := secret.NewKeyring([]secret.Text{secret.New(strings.Repeat("ab", secret.KeyBytes))})
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"", "--json"} {
		env.Exec(t, `update webhooks.endpoints set secret = $1`, keys.Seal(id, secret.New("sentinel")).Reveal())
		out := succeed(t, env, slices.DeleteFunc([]string{"endpoints", "rotate-secret", id, flag}, func(arg string) bool { return arg == "" })...)
		if strings.Contains(out, "until") || flag == "" && !strings.Contains(out, "the former secret does not sign: the secret is sealed with key ") {
			t.Errorf("it says %s", out)
		}
	}
}
