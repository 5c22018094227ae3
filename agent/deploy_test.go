package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// The tests in this file hold the files in deploy/ against what the agent shows on /metrics.

const (
	alertsFile    = "prometheus/alerts.yaml"
	testsFile     = "prometheus/alerts_test.yaml"
	dashboardFile = "grafana/dashboard.json"
)

func deployed(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "deploy", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// described returns the labels of every metric that an agent may show, by name. A histogram has
// three names.
func described() map[string][]string {
	a := &agent{log: slog.New(slog.DiscardHandler)}
	a.metrics = newMetrics("1", &a.counts)
	a.metrics.registry.MustRegister(newCollector(&candidate{agent: a}))
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		a.metrics.registry.Describe(descs)
	}()
	all := map[string][]string{}
	form := regexp.MustCompile(`fqName: "(\w+)".*variableLabels: \{([\w,]*)\}`)
	for d := range descs {
		parts := form.FindStringSubmatch(d.String())
		if parts == nil {
			panic(fmt.Sprintf("%s has another form than this test knows", d))
		}
		labels := strings.Split(parts[2], ",")
		all[parts[1]] = labels
		all[parts[1]+"_sum"], all[parts[1]+"_count"] = labels, labels
		all[parts[1]+"_bucket"] = append([]string{"le"}, labels...)
	}
	return all
}

var (
	metricInQuery   = regexp.MustCompile(`\b((?:webhook_agent|process|go)_\w+)(?:\{([^}]*)\})?`)
	labelInSelector = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"`)
	groupInQuery    = regexp.MustCompile(`\b(?:by|without|on)\s*\(([^)]*)\)`)
)

// checkQueries fails the test when a query names a metric or a label that does not exist. Prometheus
// itself adds job and instance.
func checkQueries(t *testing.T, metrics map[string][]string, queries []string) {
	t.Helper()
	for _, query := range queries {
		known := []string{"job", "instance"}
		named := metricInQuery.FindAllStringSubmatch(query, -1)
		if len(named) == 0 {
			t.Errorf("%s names no metric", query)
		}
		for _, m := range named {
			labels, exists := metrics[m[1]]
			if !exists {
				t.Errorf("%s: there is no metric %s", query, m[1])
			}
			known = append(known, labels...)
			for _, label := range labelInSelector.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(append(labels, "job", "instance"), label[1]) {
					t.Errorf("%s: %s has no label %s", query, m[1], label[1])
				}
			}
		}
		for _, group := range groupInQuery.FindAllStringSubmatch(query, -1) {
			for label := range strings.SplitSeq(group[1], ",") {
				if label = strings.TrimSpace(label); !slices.Contains(known, label) {
					t.Errorf("%s: no metric in it has the label %s", query, label)
				}
			}
		}
	}
}

// alerts returns the queries of the alert rules, by name.
func alerts(t *testing.T) map[string]string {
	t.Helper()
	rules := map[string]string{}
	form := regexp.MustCompile(`(?s)- alert: (\w+)\n\s+expr: (?:>-\n)?(.*?)\n\s+(?:for|labels):`)
	for _, rule := range form.FindAllStringSubmatch(deployed(t, alertsFile), -1) {
		rules[rule[1]] = rule[2]
	}
	if want := strings.Count(deployed(t, alertsFile), "- alert:"); len(rules) != want {
		t.Fatalf("%d rules were found, want %d", len(rules), want)
	}
	return rules
}

func TestDeploy_AlertsNameMetricsThatExist(t *testing.T) {
	var queries []string
	for _, query := range alerts(t) {
		queries = append(queries, query)
	}
	checkQueries(t, described(), queries)
}

func TestDeploy_EachAlertHasSeverityAndTestsThatFireAndDoNot(t *testing.T) {
	text, tests := deployed(t, alertsFile), deployed(t, testsFile)
	for name := range alerts(t) {
		if !strings.Contains(tests, "- name: "+name+" fires\n") || !strings.Contains(tests, "- name: "+name+", ") {
			t.Errorf("%s has no test %q, or none where it does not fire (%q)", name, name+" fires", name+", ...")
		}
		_, rule, _ := strings.Cut(text, "- alert: "+name+"\n")
		rule, _, _ = strings.Cut(rule, "- alert:")
		if !regexp.MustCompile(`severity: (critical|warning|info)\n`).MatchString(rule) ||
			!strings.Contains(rule, "summary: ") || !strings.Contains(rule, "description: ") {
			t.Errorf("%s lacks a severity, a summary or a description", name)
		}
	}
}

// The types of Grafana's own library refuse a field that a dashboard or a panel does not have.
func TestDeploy_DashboardIsValidAndItsMetricsExist(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	var d dashboard.Dashboard //nolint:staticcheck // every Grafana imports this form; the library prefers a newer one
	text := deployed(t, dashboardFile)
	err := d.UnmarshalJSONStrict([]byte(text))
	if found, known := errors.AsType[cog.BuildErrors](err); !known && err != nil || len(found) > 0 { // without any, it is not nil
		t.Fatal(err)
	}
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
	var queries []string
	for _, query := range regexp.MustCompile(`"expr": ("(?:[^"\\]|\\.)*")`).FindAllStringSubmatch(text, -1) {
		queries = append(queries, agenttest.Decode[string](t, query[1]))
	}
	checkQueries(t, described(), queries)
	for name := range described() {
		base := baseOf(name)
		if strings.HasPrefix(base, namespace) && !strings.Contains(text, base) {
			t.Errorf("no panel shows %s", base)
		}
	}
}

// The page has every metric and every alert, and no others.
func TestDeploy_ThePageForOperatorsNamesWhatExists(t *testing.T) {
	page, metrics := deployed(t, "../docs/operating.md"), described()
	for _, name := range regexp.MustCompile("`(webhook_agent_\\w+)`").FindAllStringSubmatch(page, -1) {
		if _, exists := metrics[name[1]]; !exists {
			t.Errorf("there is no metric %s", name[1])
		}
	}
	for name := range metrics {
		if base := baseOf(name); strings.HasPrefix(base, namespace) && !strings.Contains(page, "`"+base+"`") {
			t.Errorf("the page lacks %s", base)
		}
	}
	rules, text := alerts(t), deployed(t, alertsFile)
	for _, line := range regexp.MustCompile(`(?m)^\| (critical|warning|info) \| (.*) \|$`).FindAllStringSubmatch(page, -1) {
		for _, name := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(line[2], -1) {
			_, rule, exists := strings.Cut(text, "- alert: "+name[1]+"\n")
			_, severity, _ := strings.Cut(rule, "severity: ")
			if !exists || !strings.HasPrefix(severity, line[1]) {
				t.Errorf("there is no alert %s with the severity %s", name[1], line[1])
			}
			delete(rules, name[1])
		}
	}
	for name := range rules {
		t.Errorf("the page lacks the alert %s", name)
	}
}

// baseOf returns the name of a metric without what a histogram adds to it.
func baseOf(name string) string {
	for _, suffix := range []string{"_sum", "_count", "_bucket"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return name
}

// An agent shows all that the rules and the dashboard ask for, but for series whose labels nobody
// knows before they are counted.
func TestDeploy_ARunningAgentShowsTheMetricsOfTheAlerts(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	endpoint := agenttest.AddEndpoint(t, env, "venue_1", r.URL+"/hook", "lead.*")
	a := start(t, agenttest.Config(env))
	a.WaitLog("leading")
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{}`)
	agenttest.WaitStatus(t, env, event, endpoint, "succeeded, attempts 1")
	_, page := get(t, a.AdminURL()+"/metrics")
	for alert, query := range alerts(t) {
		for _, m := range metricInQuery.FindAllStringSubmatch(query, -1) {
			if !strings.Contains(page, "\n"+m[1]+" ") && !strings.Contains(page, "\n"+m[1]+"{") && m[1] != "webhook_agent_api_requests_total" {
				t.Errorf("%s: /metrics does not have %s", alert, m[1])
			}
		}
	}
	if !strings.Contains(page, "\nwebhook_agent_ready 1\n") {
		t.Error("an agent that leads is not shown as ready")
	}
}
