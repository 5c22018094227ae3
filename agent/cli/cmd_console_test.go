package cli

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv/agenttest"
)

const consoleToken = "sentinel-operator-0123456789abcdef0123"

// runConsole runs the command with an agent at an address.
func runConsole(t *testing.T, listen string, args ...string) (code int, out, problem string) {
	t.Helper()
	text := fmt.Sprintf("[database]\nurl = \"postgres://u@127.0.0.1/d\"\n[admin]\nlisten = %q\ntoken = \"env:CONSOLE_TEST_TOKEN\"\n", listen)
	var stdout, stderr strings.Builder
	code = Main(t.Context(), append([]string{"--config", agenttest.WriteFile(t, text), "console"}, args...), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// fakeAgent answers requests for a link.
func fakeAgent(t *testing.T, status int, body string) (listen string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/console/link" || r.Header.Get("Authorization") != "Bearer "+consoleToken {
			t.Errorf("it is asked %s %s", r.Method, r.URL)
		}
		w.Header().Set("Location", "http://127.0.0.1:1/console/link") // which would get the token
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

const goodTicket = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

func goodAnswer(base string) string {
	return fmt.Sprintf(`{"url":"%s/console/link/%s","expires":"2026-11-29T04:00:00Z"}`, base, goodTicket)
}

func TestConsole_PrintsTheLinkOfTheRunningAgent(t *testing.T) {
	t.Setenv("CONSOLE_TEST_TOKEN", consoleToken)
	listen := fakeAgent(t, http.StatusOK, goodAnswer("http://another-name.internal"))
	want := "http://" + listen + "/console/link/" + goodTicket
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{listen, "0.0.0.0:" + port} {
		if code, out, problem := runConsole(t, at); code != 0 || out != want+"\n" || problem != "" {
			t.Errorf("at %s: status %d, %q, %q", at, code, out, problem)
		}
	}
	if code, out, problem := runConsole(t, "127.0.0.1:1", "--address", "http://"+listen+"/"); code != 0 || out != want+"\n" || problem != "" {
		t.Errorf("with --address: status %d, %q, %q", code, out, problem)
	}
	code, out, problem := runConsole(t, listen, "--json")
	var link consoleLink
	if err := json.Unmarshal([]byte(out), &link); code != 0 || err != nil || link.URL != want || link.Expires.IsZero() || problem != "" {
		t.Errorf("as JSON: status %d, %q, %q", code, out, problem)
	}
}

func TestConsole_OpensABrowserWhenAsked(t *testing.T) {
	t.Setenv("CONSOLE_TEST_TOKEN", consoleToken)
	listen := fakeAgent(t, http.StatusOK, goodAnswer(""))
	bin := t.TempDir()
	opened := filepath.Join(bin, "opened")
	for _, name := range []string{"xdg-open", "open"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho \"$#\" \"$1\" >"+opened+"\n"), 0o700); err != nil { //nolint:gosec // it is a program
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
	want := "http://" + listen + "/console/link/" + goodTicket
	if code, out, problem := runConsole(t, listen); code != 0 || out != want+"\n" || problem != "" {
		t.Errorf("status %d, %q, %q", code, out, problem)
	}
	if _, err := os.Stat(opened); err == nil {
		t.Error("a browser is opened without --open")
	}
	if code, out, problem := runConsole(t, listen, "--open"); code != 0 || out != want+"\n" || problem != "" {
		t.Errorf("with --open: status %d, %q, %q", code, out, problem)
	}
	if text, err := os.ReadFile(opened); err != nil || string(text) != "1 "+want+"\n" {
		t.Errorf("what is opened is %q (%v)", text, err)
	}
	t.Setenv("PATH", t.TempDir())
	if code, out, problem := runConsole(t, listen, "--open"); code != exitFailed || out != want+"\n" || !strings.Contains(problem, "open the address yourself") || strings.Count(problem, "\n") != 1 {
		t.Errorf("without a browser: status %d, %q, %q", code, out, problem)
	}
}

func TestConsole_SaysInOneSentenceWhyThereIsNoLink(t *testing.T) {
	t.Setenv("CONSOLE_TEST_TOKEN", consoleToken)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		listen, want string
	}{
		"no agent":          {nobody, "no agent answers at http://" + nobody},
		"another token":     {fakeAgent(t, http.StatusUnauthorized, "sentinel"), "another admin.token"},
		"many links":        {fakeAgent(t, http.StatusTooManyRequests, ""), "in a minute"},
		"an older agent":    {fakeAgent(t, http.StatusNotFound, "404"), "has no console (status 404)"},
		"a redirect":        {fakeAgent(t, http.StatusTemporaryRedirect, ""), "has no console (status 307)"},
		"no JSON":           {fakeAgent(t, http.StatusOK, "<html>\x1b[31m"), "is no webhook-agent"},
		"no address":        {fakeAgent(t, http.StatusOK, "{}"), "is no webhook-agent"},
		"another path":      {fakeAgent(t, http.StatusOK, `{"url":"https://evil.example/console/link/../../x"}`), "is no webhook-agent"},
		"a longer path":     {fakeAgent(t, http.StatusOK, `{"url":"http://h/console/link/`+goodTicket+`;reboot"}`), "is no webhook-agent"},
		"an endless answer": {fakeAgent(t, http.StatusOK, strings.Repeat(" ", 2*maxConsoleAnswer)+goodAnswer("")), "is no webhook-agent"},
	} {
		code, out, problem := runConsole(t, c.listen)
		if code != exitFailed || out != "" || !strings.Contains(problem, c.want) || strings.Count(problem, "\n") != 1 || strings.Contains(problem, "sentinel") || strings.Contains(problem, "\x1b") {
			t.Errorf("%s: status %d, %q, %q, want a sentence with %q", name, code, out, problem, c.want)
		}
	}
	var stdout, stderr strings.Builder
	path := agenttest.WriteFile(t, "[database]\nurl = \"postgres://u@127.0.0.1/d\"\n")
	if code := Main(t.Context(), []string{"--config", path, "console"}, &stdout, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "admin.token is not set") {
		t.Errorf("without a token: status %d, %q", code, stderr.String())
	}
	for _, address := range []string{"127.0.0.1:8480", "http://agent.internal:8480", "https://h/path", "ftp://h", "https://u:sentinel@h", "https://h?x"} {
		if code, out, problem := runConsole(t, nobody, "--address", address); code != exitUsage || out != "" || strings.Count(problem, "\n") != 1 {
			t.Errorf("--address %s: status %d, %q, %q", address, code, out, problem)
		}
	}
}
