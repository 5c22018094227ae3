package config

import (
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/secret"
)

func TestTracing_SaysWhatIsWrong(t *testing.T) {
	for _, test := range []struct {
		tracing Tracing
		want    string
	}{
		{Tracing{}, ""},
		{Tracing{Endpoint: "http://127.0.0.1:4318", Sample: 1, Headers: []secret.Text{secret.New("Authorization: Bearer sentinel")}}, ""},
		{Tracing{Endpoint: "127.0.0.1:4318"}, "tracing.endpoint must be a URL such as"},
		{Tracing{Endpoint: "grpc://collector:4317"}, "tracing.endpoint must be a URL such as"},
		{Tracing{Endpoint: "https://user:sentinel@collector:4318"}, "tracing.endpoint must have no user, query or fragment"},
		{Tracing{Endpoint: "https://collector:4318/?token=sentinel"}, "tracing.endpoint must have no user, query or fragment"},
		{Tracing{Headers: []secret.Text{secret.New("sentinel")}}, "tracing.headers[1] must be a name and a value"},
		{Tracing{Headers: []secret.Text{secret.New("A: b"), secret.New("A: sentinel\r\nB: c")}}, "tracing.headers[2] must be a name and a value"},
		{Tracing{Sample: 1.01}, "tracing.sample is 1.01, must be 0 to 1"},
		{Tracing{Sample: -1}, "tracing.sample is -1, must be 0 to 1"},
	} {
		p := &problemList{sources: map[string]string{}, unreadable: map[string]bool{}}
		test.tracing.check(p)
		got := ""
		if len(p.problems) > 0 {
			got = (&Error{p.problems}).Error()
		}
		if (got == "") != (test.want == "") || !strings.Contains(strings.ReplaceAll(got, ": ", " "), test.want) || strings.Contains(got, "sentinel") {
			t.Errorf("%+v: %q, want %q", test.tracing, got, test.want)
		}
	}
}

func TestTracing_HasThePathOfOTLPUnlessItHasItsOwn(t *testing.T) {
	for endpoint, want := range map[string]string{
		"http://c:4318": "http://c:4318/v1/traces", "http://c:4318/": "http://c:4318/v1/traces", "https://c/own/path": "https://c/own/path",
	} {
		if got := (Tracing{Endpoint: endpoint}).URL(); got != want {
			t.Errorf("%s: %s, want %s", endpoint, got, want)
		}
	}
}

func TestDecode_TakesNumbersWithAFractionOrWithout(t *testing.T) {
	for text, want := range map[string]float64{"0.5": 0.5, "1": 1, `"1"`: -1, "true": -1} {
		cfg, err := loadText(t, "[database]\nurl = \""+testDatabaseURL+"\"\n[tracing]\nsample = "+text, nil)
		if bad := want < 0; bad != (err != nil) || !bad && cfg.Tracing.Sample != want {
			t.Errorf("%s: %v", text, err)
		}
	}
}
