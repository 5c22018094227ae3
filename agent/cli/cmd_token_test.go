package cli

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

func TestToken_IsWhatTheVerifierAccepts(t *testing.T) {
	const key = "0123456789abcdef0123456789abcdef"
	t.Setenv("CONSOLE_TEST_KEY", key)
	path := agenttest.WriteFile(t, "[database]\nurl = \"postgres://u@127.0.0.1/d\"\n[console]\nkeys = [\"ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\", \"env:CONSOLE_TEST_KEY\"]\n")
	run := func(args ...string) (code int, out, problem string) {
		var stdout, stderr strings.Builder
		code = Main(t.Context(), append([]string{"--config", path, "token"}, args...), &stdout, &stderr)
		return code, strings.TrimSpace(stdout.String()), stderr.String()
	}
	code, token, problem := run("--venue", "venue_1", "--scope", "read")
	if code != 0 {
		t.Fatalf("status %d: %s", code, problem)
	}
	keys, err := access.NewKeys([]secret.Text{secret.New(key)})
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	if p, err := access.NewVerifier(secret.Text{}, keys).Verify(r); err != nil || p.Venue() != "venue_1" || p.MayManage() {
		t.Errorf("the token is for %+v (%v)", p, err)
	}
	for _, args := range [][]string{{}, {"--venue", "*"}, {"--venue", "v", "--scope", "admin"}, {"--venue", "v", "--life", "16m"}, {"--venue", "v", "--life", "0s"}} {
		if code, out, problem := run(args...); code == 0 || out != "" || strings.Contains(problem, key) {
			t.Errorf("%v: status %d, %q, %q", args, code, out, problem)
		}
	}
}
