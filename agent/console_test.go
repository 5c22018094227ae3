package agent

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// visit asks an agent for a page as a browser does, with the cookies of an earlier answer. It
// follows no redirect.
func visit(t *testing.T, method, address string, form url.Values, header http.Header, cookies ...*http.Cookie) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		request.Header = header
	}
	if form != nil {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, c := range cookies {
		request.AddCookie(&http.Cookie{Name: c.Name, Value: c.Value})
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	return response
}

// TestConsole_OfARunningAgentOpens goes through both doors: that of the operators, by the link of
// the command console, and that of a venue's users, at the listener that is theirs.
func TestConsole_OfARunningAgentOpens(t *testing.T) {
	t.Parallel()
	const token, origin = "operator-0123456789abcdef0123456789", "https://app.example.com"
	env := testenv.NewDB(t)
	cfg := agenttest.Config(env)
	cfg.Admin.Token = secret.New(token)
	cfg.Console.Keys = []secret.Text{secret.New("console-key-0123456789abcdef01234567")}
	cfg.Console.Listen = "127.0.0.1:0"
	cfg.Console.Origins = []string{origin}
	agent := start(t, cfg)
	agent.WaitLog("leading")

	text := agenttest.ConfigText(env, env.LeastURL) + "\n[admin]\ntoken = \"" + token + "\"\n"
	link := strings.TrimSpace(commandSucceedsWith(t, text, "console", "--address", agent.AdminURL()))
	opened := visit(t, http.MethodGet, link, nil, nil)
	if opened.StatusCode != http.StatusSeeOther || len(opened.Cookies()) != 1 {
		t.Fatalf("the link %s is answered %d with %d cookies", link, opened.StatusCode, len(opened.Cookies()))
	}
	operator := opened.Cookies()[0]
	if page := visit(t, http.MethodGet, agent.AdminURL()+"/console/", nil, nil, operator); page.StatusCode != http.StatusOK || !strings.HasPrefix(page.Header.Get("Content-Type"), "text/html") {
		t.Errorf("the first page is answered %d", page.StatusCode)
	}
	if status, _, problem := commandWith(t, strings.Replace(text, token, token+"x", 1), "console", "--address", agent.AdminURL()); status != statusFailed || !strings.Contains(problem, "another admin.token") {
		t.Errorf("with another token: status %d, %s", status, problem)
	}

	venues := "http://" + string(regexp.MustCompile(`console=(\S+)`).FindSubmatch(agent.Log.Bytes())[1])
	for _, path := range []string{"/console/", "/console/signin", "/console/v/venue_1/endpoints"} {
		if page := visit(t, http.MethodGet, venues+path, nil, nil, operator); page.StatusCode != http.StatusNotFound && page.StatusCode != http.StatusUnauthorized {
			t.Errorf("the listener for venues answers an operator %d for %s", page.StatusCode, path)
		}
	}
	minted, err := cfg.ConsoleKeys().Mint("venue_1", access.ScopeRead, time.Minute, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	session := visit(t, http.MethodPost, venues+"/console/session", url.Values{"token": {minted.Reveal()}}, http.Header{"Origin": {origin}, "Sec-Fetch-Site": {"cross-site"}})
	if session.StatusCode != http.StatusSeeOther || session.Header.Get("Location") != "/console/v/venue_1/endpoints" || len(session.Cookies()) != 1 {
		t.Fatalf("a venue's token is answered %d %q", session.StatusCode, session.Header.Get("Location"))
	}
	for path, want := range map[string]int{"/console/v/venue_1/endpoints": 200, "/console/v/venue_1/endpoints/new": 403, "/console/v/venue_2/endpoints": 401} {
		page := visit(t, http.MethodGet, venues+path, nil, nil, session.Cookies()...)
		if page.StatusCode != want || !strings.Contains(page.Header.Get("Content-Security-Policy"), "frame-ancestors "+origin) {
			t.Errorf("%s is answered %d with the policy %q, want %d", path, page.StatusCode, page.Header.Get("Content-Security-Policy"), want)
		}
	}
	for _, secret := range []string{token, minted.Reveal(), strings.TrimPrefix(link, agent.AdminURL()+"/console/link/"), operator.Value} {
		if strings.Contains(agent.Log.String(), secret) {
			t.Errorf("the log shows %q", secret)
		}
	}
}
