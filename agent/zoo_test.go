package agent

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
	"github.com/quintago/webhook-agent/testenv/zoo"
)

var update = flag.Bool("update", false, "write testdata/zoo.golden anew")

// zooResolver resolves all names at a zoo.
func zooResolver(z *zoo.Zoo) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, z.DNS.String())
	}}
}

// trustZoo makes this process, and those that it starts, trust the animals whose certificates are
// right. It must be called before the first sink.Webhook is made.
func trustZoo() (forget func(), err error) {
	authority, err := zoo.Authority()
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "zoo")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(folder, "authority.pem")
	forget = func() { _ = os.RemoveAll(folder) }
	if err := os.WriteFile(path, authority, 0o600); err != nil {
		forget()
		return nil, err
	}
	return forget, os.Setenv("SSL_CERT_FILE", path)
}

// selectZoo rounds waits down to tens of minutes, because each is lengthened by up to a tenth.
const selectZoo = `
select concat_ws(E'\t', d.endpoint_id, d.status || coalesce(', disabled: ' || e.disabled_reason, ''), coalesce(d.last_code::text, '-'), coalesce(d.last_class, '-'),
                 coalesce(floor(extract(epoch from d.next_attempt_at - a.at) / 600) * 10 || ' min', '-'), coalesce(d.last_error, '-'), left(a.response, 40))
from webhooks.deliveries d
join webhooks.endpoints e on e.id = d.endpoint_id
left join webhooks.attempts a on a.event_id = d.event_id and a.endpoint_id = d.endpoint_id
where d.attempts = 1`

// clockNow is the only text of a sentence that differs from run to run.
var clockNow, manyX = regexp.MustCompile(`clock says [-0-9TZ:]+`), regexp.MustCompile(`xxx+`)

// Each animal of the zoo gets an event. The test compares what the delivery log has of its first
// attempt with testdata/zoo.golden.
func TestZoo_EachAnimalMeetsAClearAnswer(t *testing.T) {
	t.Parallel()
	z := zoo.Start(t)
	env := testenv.NewDB(t)
	for _, a := range z.Animals {
		env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ($1, 'zoo', $2, '{*}', $3)`, a.Name, a.URL, agenttest.Secret)
	}
	cfg := agenttest.Config(env)
	cfg.Delivery.Timeout = 4 * time.Second                   // enough for a large certificate on a machine that is busy, less than the resolver gives a DNS server
	cfg.Delivery.Retries = []time.Duration{10 * time.Minute} // less than the longest Retry-After
	cfg.Notices.Enabled = false                              // some animals answer 410, and all ask for everything
	agent := startWith(t, cfg, zooResolver(z))
	agent.WaitLog("msg=leading")
	agenttest.AddEvent(t, env, "zoo", "lead.created", `{}`)
	var rows []string
	testenv.Eventually(t, agenttest.Patience, func() error {
		if rows = testenv.QueryAll[string](t, env, selectZoo); len(rows) < len(z.Animals) {
			return fmt.Errorf("%d of %d animals have had their event", len(rows), len(z.Animals))
		}
		return nil
	})

	for _, row := range rows {
		if sentence := strings.Split(row, "\t")[5]; len(sentence) > 300 {
			t.Errorf("a sentence has %d bytes: %s", len(sentence), row)
		}
	}
	checkGolden(t, "zoo.golden", zooTable(z.Animals, rows))

	again := agenttest.AddEvent(t, env, "zoo", "lead.created", `{}`)
	testenv.Eventually(t, agenttest.Patience, func() error {
		class := testenv.QueryAll[string](t, env, `select last_class from webhooks.deliveries where event_id = $1 and endpoint_id = 'name-rebinding' and attempts = 1`, again)
		if !slices.Equal(class, []string{string(sink.ClassBlockedAddress)}) {
			return fmt.Errorf("a name that leads elsewhere the second time: %q", class)
		}
		return nil
	})
}

// zooTable makes a table of the rows in the order of the animals.
func zooTable(animals []zoo.Animal, rows []string) string {
	byName := map[string]string{}
	for _, row := range rows {
		columns := strings.Split(row, "\t")
		if len(columns) == 7 {
			columns[6] = strconv.QuoteToASCII(manyX.ReplaceAllString(columns[6], "xxx")) // how many dribble is a matter of time
		}
		byName[columns[0]] = strings.Join(columns[1:], "\t")
	}
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "animal\tstatus\tcode\tclass\tretry after\tsentence\tresponse")
	for _, a := range animals {
		fmt.Fprintf(w, "%s\t%s\n", a.Name, cmp.Or(clockNow.ReplaceAllString(byName[a.Name], "clock says NOW"), "nothing"))
	}
	_ = w.Flush() // a strings.Builder takes everything
	return text.String()
}

// checkGolden compares text with a file of testdata, or writes the file with -update.
func checkGolden(t *testing.T, file, text string) {
	t.Helper()
	path := filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(strings.Split(string(want), "\n"), strings.Split(text, "\n")); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// Animals get several events, some close together, and some after a pause in which they close idle
// connections. Each event arrives, and no attempt fails except those that the animal refuses.
func TestZoo_ServersThatHaveTheirOwnWayWithConnectionsGetEveryEvent(t *testing.T) {
	t.Parallel()
	const (
		rounds, inRound = 3, 10
		pause           = 5050 * time.Millisecond // a little more than keeps-5s waits
		large           = 4                       // events
	)
	z := zoo.Start(t)
	env := testenv.NewDB(t)
	events := map[string]int{
		"keeps-5s": rounds * inRound, "keeps-1s": rounds * inRound, "keeps-nothing": rounds * inRound, "no-content-body": rounds * inRound,
		"unfinished-body": rounds * inRound, "one-connection": rounds * inRound, "token-bucket": rounds * inRound, "early-200": large,
	}
	mayFail := []string{"one-connection", "token-bucket"} // those that refuse some for their number
	for _, a := range z.Animals {
		if events[a.Name] > 0 {
			pattern := "{lead.created}"
			if a.Name == "early-200" {
				pattern = "{lead.updated}"
			}
			env.Exec(t, `insert into webhooks.endpoints (id, venue, url, events, secret) values ($1, 'zoo', $2, $3::text::text[], $4)`, a.Name, a.URL, pattern, agenttest.Secret)
		}
	}
	cfg := agenttest.Config(env)
	cfg.Delivery.Retries = []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second}
	start(t, cfg).WaitLog("msg=leading")
	for range large { // each is more than what the system takes in for a connection that nobody reads
		env.Exec(t, `insert into webhooks.outbox (type, venue, data) values ('lead.updated', 'zoo', to_json(repeat('x', 4000000)))`)
	}
	for round := range rounds {
		if round > 0 {
			<-time.After(pause)
		}
		for range inRound {
			agenttest.AddEvent(t, env, "zoo", "lead.created", `{}`)
		}
	}
	for name, want := range events {
		testenv.Eventually(t, agenttest.Patience, func() error {
			if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.deliveries where endpoint_id = $1 and status = 'succeeded'`, name); n != want {
				return fmt.Errorf("%s has got %d of %d events", name, n, want)
			}
			return nil
		})
		failed := testenv.QueryAll[string](t, env, `select coalesce(class, '') || ': ' || coalesce(error, '') from webhooks.attempts where endpoint_id = $1`, name)
		if len(failed) > 0 && !slices.Contains(mayFail, name) {
			t.Errorf("%d attempts to %s failed: %q", len(failed), name, failed[0])
		}
		t.Logf("%s: %d events, %d failed attempts", name, want, len(failed))
	}
}

// Working endpoints get two hundred deliveries a second. Meanwhile each animal of the zoo gets ten
// events a second and their retries.
func TestZoo_HealthyEndpointsDoNotNoticeIt(t *testing.T) {
	t.Parallel()
	const (
		events = 200
		sound  = 2               // endpoints
		slow   = 2 * time.Second // what an attempt at a silent animal takes; for nine of ten, since other tests run beside this one
		memory = 160 << 20
	)
	z := zoo.Start(t)
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	for i := range sound {
		agenttest.AddEndpoint(t, env, "venue_1", fmt.Sprintf("%s/%d", r.URL, i), "*")
	}
	for _, a := range z.Animals {
		if !a.Named { // another process does not know them
			agenttest.AddEndpoint(t, env, "zoo", a.URL, "*")
		}
	}
	p := launch{binary: binary, delivery: `timeout = "2s"
retries = ["1s", "1s", "1s", "1s", "1s"]
disable_after = 10000`}.start(t, env)
	p.awaitReady(t, "leading\n")
	agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	r.Wait(t, sound, agenttest.Patience)

	committed := map[string]time.Time{}
	next := time.NewTicker(10 * time.Millisecond)
	defer next.Stop()
	most := 0.0
	for i := range events {
		<-next.C
		if i%10 == 0 {
			agenttest.AddEvent(t, env, "zoo", "lead.created", `{}`)
			most = max(most, p.metric(t, "go_memstats_sys_bytes"))
		}
		id := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
		committed[id] = time.Now()
	}
	var waits []time.Duration
	for _, got := range r.Wait(t, sound*(events+1), agenttest.Patience) {
		if at, ok := committed[got.ID]; ok {
			waits = append(waits, got.At.Sub(at))
		}
	}
	slices.Sort(waits)
	p50, p90, p99 := waits[len(waits)/2], waits[len(waits)*9/10], waits[len(waits)*99/100]
	t.Logf("from COMMIT to arrival: p50 %s, p90 %s, p99 %s; %.0f MiB at most", p50, p90, p99, most/(1<<20))
	if p90 > slow || len(waits) != sound*events {
		t.Errorf("%d deliveries, p90 %s, want %d within %s", len(waits), p90, sound*events, slow)
	}
	if most > memory {
		t.Errorf("the agent took %.0f MiB, want %d at most", most/(1<<20), memory>>20)
	}
	if n := testenv.QueryOne[int](t, env, `select count(*) from webhooks.attempts`); n < 10*len(z.Animals) {
		t.Errorf("%d failed attempts: the zoo was hardly there", n)
	}
}
