package manage

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/testenv"
)

// urls are pieces of URLs, and whole ones, that have led to a verdict of their own.
var urls = []string{
	"https://example.com", "https://example.com/", "https://example.com/hook?a=b&c=%zz", "https://example.com:443/", "HTTPS://Example.COM./x", "https://a_b.example.com",
	"http://example.com/", "ftp://example.com/", "mailto:a@example.com", "example.com", "//example.com", "/hook", "", " ", "https://", "https:///x", "https:example.com", "https:/example.com",
	" https://example.com", "https://example.com ", "https://example.com/\n", "https://exa mple.com", "https://example.com/a b", "https://example.com/%", "https://example.com/%2", "https://example.com/%2g",
	"https://example.com/%41", "https://example.com?%", "https://user@example.com", "https://user:pw@example.com/", "https://@example.com", "https://example.com/#x", "https://example.com#", "https://example.com?x#y",
	"https://example.com:0/", "https://example.com:65535/", "https://example.com:65536/", "https://example.com:", "https://example.com:x/", "https://example.com:80:80/", "https://example.com:00080/", "https://example.com:099999999999/",
	"https://10.0.0.1/", "https://1.1.1.1/", "https://1.2.3/", "https://256.1.1.1/", "https://01.1.1.1/", "https://127.1/", "https://0x7f.0.0.1/", "https://[::1]/", "https://[fe80::1%25eth0]/", "https://[::1", "https://[]/", "https://[::1]:80/", "https://[x]/",
	"https://localhost/", "https://x.localhost/", "https://LOCALHOST.", "https://localhost.localdomain", "https://ip6-loopback",
	"https://host/", "https://host./", "https://a..b/", "https://.example.com/", "https://example.com../", "https://-/", "https://a.-/", "https://münchen.de/", "https://xn--mnchen-3ya.de/", "https://exam\u200bple.com/", "https://example.com/\u200b", "https://example.com/ü",
	"https://" + strings.Repeat("a", 63) + ".com", "https://" + strings.Repeat("a", 64) + ".com", "https://" + strings.Repeat("a.", 126) + "com", "https://" + strings.Repeat("a.", 127) + "com",
	"https://example.com/" + strings.Repeat("a", 2028), "https://example.com/" + strings.Repeat("a", 2029), "https://example.com\\x", "https://exa<mple.com", "https://example.com/<script>", "https://%65xample.com/", "https://example.com|x/", "https://example.1a/", "https://1example.com", "https://example.com\x7f/",
	"https://example.com/hook-dev", "https://crm.example.gov", "https://example.com/\v", "https://example.com/\f",
}

// mutated returns a URL that is made of pieces of others.
func mutated(r *rand.Rand) string {
	a, b := []rune(urls[r.IntN(len(urls))]), []rune(urls[r.IntN(len(urls))])
	if len(a) > 80 || len(b) > 80 {
		return "https://example.com"
	}
	text := string(a[:r.IntN(len(a)+1)]) + string(b[r.IntN(len(b)+1):])
	if r.IntN(3) == 0 {
		at := r.IntN(len(text) + 1)
		text = text[:at] + string(" %:/@#?.[]-_\t\"\\1aZ"[r.IntN(18)]) + text[at:]
	}
	return strings.ToValidUTF8(text, "")
}

// TestCheckURL_HasTheSameVerdictInSQL compares webhooks.check_url with the agent, which has the
// default settings of the network.
func TestCheckURL_HasTheSameVerdictInSQL(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	env := testenv.NewDB(t)
	network := config.Default().Network
	webhook, err := network.Checker()
	if err != nil {
		t.Fatal(err)
	}
	defer webhook.Close()
	inputs := urls
	r := rand.New(rand.NewPCG(20261128, 1))
	for range 20_000 {
		inputs = append(inputs[:len(inputs):len(inputs)], mutated(r))
	}
	verdicts := testenv.QueryAll[string](t, env, `select coalesce(webhooks.check_url(u), '') from unnest($1::text[]) with ordinality x (u, n) order by n`, inputs)
	wrong := 0
	for i, url := range inputs {
		want := ""
		if err := webhook.CheckURL(url); err != nil {
			want = err.Error()
		}
		if (verdicts[i] == "") != (want == "") && wrong < 20 {
			wrong++
			t.Errorf("%q: in SQL %q, want %q", url, verdicts[i], want)
		}
		if strings.Contains(verdicts[i], "example") {
			t.Errorf("%q: the verdict quotes the URL: %s", url, verdicts[i])
		}
	}
}

func TestCheckEvents_HasTheSameVerdictInSQL(t *testing.T) {
	testenv.OneGoroutine(t)
	t.Parallel()
	env := testenv.NewDB(t)
	for _, events := range [][]string{
		{"*"}, {"lead.*"}, {"lead.created", "payment.received"}, {}, {""}, {"lead."}, {"lead*"}, {"*.created"}, {".*"}, {"l.*"}, {"**"}, {"lead.**"}, {" lead.created"}, {"lead.created "},
		{"lead.created", "x*"}, {"lead\n"}, {"lead created"}, {"."}, {"a.b.*"}, {"*", "*"},
		{"visit.booked"}, {"venue.*"}, {"lead.v"}, {"lead\v"},
	} {
		want := ""
		if field, ok := errors.AsType[*FieldError](checkEvents(events)); ok {
			want = field.Unquoted
		}
		got := testenv.QueryOne[string](t, env, `select coalesce(webhooks.check_events($1), '')`, events)
		if (got == "") != (want == "") || strings.Contains(want, "number") != strings.Contains(got, "number") {
			t.Errorf("%q: in SQL %q, want %q", events, got, want)
		}
	}
	if got := testenv.QueryOne[string](t, env, `select string_agg(field, ' ' order by field) from webhooks.check_endpoint('http://x', '{}')`); got != "events url" {
		t.Errorf("check_endpoint names %q", got)
	}
	if got := testenv.QueryOne[int64](t, env, `select count(*) from webhooks.check_endpoint('https://example.com/', '{*}')`); got != 0 {
		t.Errorf("check_endpoint finds %d problems in a sound endpoint", got)
	}
}

// TestCheckEndpoint_KnowsTheSameTyposInSQL compares webhooks.meant_type with the hints of the
// commands and pages, for types that are changed at random.
func TestCheckEndpoint_KnowsTheSameTyposInSQL(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	env.Exec(t, `insert into webhooks.event_types (name, description, example) values ('Zoë.geändert', '', '{}'), ('a', '', '{}')`)
	var catalogue []outbox.EventTypeInfo
	for _, name := range testenv.QueryAll[string](t, env, `select name from webhooks.event_types order by name`) {
		catalogue = append(catalogue, outbox.EventTypeInfo{Name: name})
	}
	given := []string{"*", "lead.*", "leed.*", "LEAD.*", "LEAD.CREATED", "lead", "lead.crated", "leads.created", "x", "x.*", "payments.*", "custom.thing", "zoë.*", "zoe.geandert"}
	r := rand.New(rand.NewPCG(20261129, 1))
	for range 300 {
		letters := []rune(catalogue[r.IntN(len(catalogue))].Name)
		for range 1 + r.IntN(5) {
			at := r.IntN(len(letters) + 1)
			letters = slices.Concat(letters[:at], []rune{rune("abcelrtLADE._ö"[r.IntN(14)])}, letters[min(len(letters), at+r.IntN(3)):])
		}
		if text := string(letters); r.IntN(5) == 0 {
			group, _, _ := strings.Cut(text, ".")
			given = append(given, group+".*")
		} else {
			given = append(given, strings.ToValidUTF8(text, ""))
		}
	}
	meant := testenv.QueryAll[string](t, env, `select coalesce(webhooks.meant_type(g), '') from unnest($1::text[]) with ordinality x (g, n) order by n`, given)
	for i, pattern := range given {
		want := ""
		if hints := hintsFor([]string{pattern}, catalogue); len(hints) > 0 && checkEvents([]string{pattern}) == nil {
			want = hints[0].Meant
		}
		if checkEvents([]string{pattern}) == nil && meant[i] != want {
			t.Errorf("%q: in SQL %q, want %q", pattern, meant[i], want)
		}
	}
	const problem = `events has "lead.crated", which the catalogue of event types does not have; did you mean "lead.created"? Correct it, or add it to webhooks.event_types`
	if got := testenv.QueryAll[string](t, env, `select problem from webhooks.check_endpoint('https://example.com/', '{lead.crated,lead.updated,custom.thing}')`); len(got) != 1 || got[0] != problem {
		t.Errorf("check_endpoint says %q", got)
	}
	if got := testenv.QueryAll[string](t, env, `select problem from webhooks.check_endpoint('https://example.com/', '{lead*,lead.crated}')`); len(got) != 1 {
		t.Errorf("of a list that is not usable check_endpoint says %q", got)
	}
}
