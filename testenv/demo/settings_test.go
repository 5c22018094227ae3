package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/secret"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The code of docs/settings-page.md is the demo's own, which runs.
func TestSettingsPage_IsWhatTheDocumentationShows(t *testing.T) {
	doc := read(t, "../../docs/settings-page.md")
	_, sign, found := strings.Cut(read(t, "sign.go"), "\n)\n\n")
	if !found {
		t.Fatal("sign.go has no imports")
	}
	for language, code := range map[string]string{"go": sign, "js": read(t, "settings/webhooks.js")} {
		if block := "```" + language + "\n" + strings.TrimSpace(code) + "\n```"; !strings.Contains(doc, block) {
			t.Errorf("the documentation lacks, or shows in another form:\n%s", block)
		}
	}
	// What the script looks for is in the documented form, and in the demo's.
	for _, page := range []string{doc, read(t, "settings/page.html")} {
		for _, id := range regexp.MustCompile(`getElementById\("([a-z-]+)"\)`).FindAllStringSubmatch(read(t, "settings/webhooks.js"), -1) {
			if !strings.Contains(page, `id="`+id[1]+`"`) {
				t.Errorf("there is no element %s", id[1])
			}
		}
		if !strings.Contains(page, `target="webhooks-frame"`) || !strings.Contains(page, `<iframe name="webhooks-frame"`) || !strings.Contains(page, "/console/session\"") {
			t.Error("the form does not lead into the frame")
		}
	}
}

func TestSettingsToken_IsWhatTheAgentVerifies(t *testing.T) {
	key := randomHex()
	keys, err := access.NewKeys([]secret.Text{secret.New(key)})
	if err != nil {
		t.Fatal(err)
	}
	verifier := access.NewVerifier(secret.Text{}, keys)
	for _, mayChange := range []bool{true, false} {
		p, err := verifier.VerifyToken(settingsToken([]byte(key), "venue_ü", "user_1", mayChange, time.Now()))
		if err != nil || p.Role() != access.RoleVenue || p.Venue() != "venue_ü" || p.Subject() != "user_1" || p.MayManage() != mayChange || time.Until(p.Expires()) > 5*time.Minute {
			t.Errorf("may change %t: %+v (%v)", mayChange, p, err)
		}
	}
	if _, err := verifier.VerifyToken(settingsToken([]byte(randomHex()), "v", "u", true, time.Now())); err == nil {
		t.Error("another key is accepted")
	}
}

func TestSettings_SignsForTheUsersVenuesAlone(t *testing.T) {
	s, err := listenSettings(makeVenues())
	if err != nil {
		t.Fatal(err)
	}
	s.start("http://127.0.0.1:8480")
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	ask := func(method, path string, header ...string) (status int, body string, h http.Header) {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), method, s.base+path, nil)
		r.RequestURI = ""
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(text), response.Header
	}
	for _, v := range s.venues {
		status, body, header := ask(http.MethodGet, "/settings/webhooks?venue="+v.ID)
		if status != http.StatusOK || !strings.Contains(body, v.Name) || !strings.Contains(header.Get("Content-Security-Policy"), "frame-src http://127.0.0.1:8480") || strings.Contains(body, s.key) {
			t.Errorf("the page of %s: %d", v.Name, status)
		}
		if status, token, _ := ask(http.MethodPost, "/settings/webhooks/token?venue="+v.ID); status != http.StatusOK || strings.Count(token, ".") != 2 {
			t.Errorf("a token of %s: %d %q", v.Name, status, token)
		}
		if status, token, _ := ask(http.MethodPost, "/settings/webhooks/token?venue="+v.ID, "Sec-Fetch-Site", "cross-site"); status != http.StatusForbidden {
			t.Errorf("a token for another page: %d %q", status, token)
		}
	}
	for _, venue := range []string{"", "venue_other", makeVenues()[1].id} {
		if status, token, _ := ask(http.MethodPost, "/settings/webhooks/token?venue="+venue); status != http.StatusNotFound {
			t.Errorf("a token of %q: %d %q", venue, status, token)
		}
	}
	// Every link of the stage set leads to a page.
	_, body, _ := ask(http.MethodGet, "/settings/webhooks")
	for _, link := range regexp.MustCompile(`(?:href|src)="(/[^"#]*)"`).FindAllStringSubmatch(body, -1) {
		if status, _, _ := ask(http.MethodGet, strings.ReplaceAll(link[1], "&amp;", "&")); status != http.StatusOK {
			t.Errorf("%s: %d", link[1], status)
		}
	}
}
