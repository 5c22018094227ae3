package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/feed"
	"github.com/quintago/webhook-agent/agent/limits"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

const (
	operatorToken = "operator-0123456789abcdef0123456789"
	signingKey    = "signing-key-0123456789abcdef0123456789"
)

// fixture is an API on a database of its own, without an agent that delivers.
type fixture struct {
	testing.TB
	env     *testenv.DB
	cfg     *config.Config
	handler *Handler
	feed    *feed.Feed
	url     string
	log     *agenttest.Buffer
	state   string // of the term
	check   *checker
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{TB: t, env: testenv.NewDB(t), feed: feed.New(), log: &agenttest.Buffer{}, state: "standby"}
	f.cfg = agenttest.Config(f.env)
	f.cfg.Admin.Token = secret.New(operatorToken)
	f.cfg.Console.Keys = []secret.Text{secret.New(signingKey)}
	db, webhook := agenttest.Parts(t, f.cfg)
	var err error
	f.handler, err = New(Config{
		Config: f.cfg, DB: db, Webhook: webhook, Version: "test", Feed: f.feed,
		Limits: limits.New(limits.Unlimited),
		Log:    slog.New(slog.NewTextHandler(f.log, nil)),
		Terms:  func() []TermInfo { return []TermInfo{{Slot: f.cfg.Outbox.Slot, State: f.state}} },
	}, access.NewVerifier(f.cfg.Admin.Token, f.cfg.ConsoleKeys()))
	if err != nil {
		t.Fatal(err)
	}
	f.handler.tailPoll, f.handler.replayPoll = 50*time.Millisecond, 50*time.Millisecond
	server := httptest.NewServer(f.handler)
	t.Cleanup(server.Close)
	f.url = server.URL
	f.check = newChecker(t, f.handler.document)
	return f
}

// token mints a token of a venue.
func (f *fixture) token(venue string, scope access.Scope) string {
	f.Helper()
	token, err := f.cfg.ConsoleKeys().Mint(venue, scope, 5*time.Minute, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	return token.Reveal()
}

// reply is an answer of the API.
type reply struct {
	status int
	header http.Header
	body   string
}

// value returns a field of the body, found by its path.
func (r reply) value(t testing.TB, path ...any) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
	for _, step := range path {
		switch step := step.(type) {
		case string:
			object, ok := v.(map[string]any)
			if !ok {
				t.Fatalf("no %v in %s", path, r.body)
			}
			v = object[step]
		case int:
			list, ok := v.([]any)
			if !ok || step >= len(list) {
				t.Fatalf("no %v in %s", path, r.body)
			}
			v = list[step]
		}
	}
	return v
}

func (r reply) text(t testing.TB, path ...any) string {
	t.Helper()
	text, ok := r.value(t, path...).(string)
	if !ok {
		t.Fatalf("%v is no text in %s", path, r.body)
	}
	return text
}

// ask sends a request and validates the answer against the document. body is JSON, or "" for none.
// Each pair of headers is a name and a value.
func (f *fixture) ask(token, method, path, body string, headers ...string) reply {
	f.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	request, err := http.NewRequestWithContext(f.Context(), method, f.url+path, reader)
	if err != nil {
		f.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		f.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		f.Fatal(err)
	}
	r := reply{response.StatusCode, response.Header, string(text)}
	f.check.answer(f.handler, request, r)
	return r
}

// want is ask for an answer of a status.
func (f *fixture) want(status int, token, method, path, body string, headers ...string) reply {
	f.Helper()
	r := f.ask(token, method, path, body, headers...)
	if r.status != status {
		f.Fatalf("%s %s: status %d, want %d: %s\n%s", method, path, r.status, status, r.body, f.log.String())
	}
	return r
}

// checker validates answers against the document.
type checker struct {
	t        testing.TB
	document map[string]any
	compiler *jsonschema.Compiler
	mu       sync.Mutex
	schemas  map[string]*jsonschema.Schema
}

const documentURL = "https://example.com/openapi.json"

func newChecker(t testing.TB, document []byte) *checker {
	t.Helper()
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	if err != nil {
		t.Fatal(err)
	}
	c := &checker{t: t, document: parsed.(map[string]any), compiler: jsonschema.NewCompiler(), schemas: map[string]*jsonschema.Schema{}}
	c.compiler.DefaultDraft(jsonschema.Draft2020)
	c.compiler.AssertFormat()
	if err := c.compiler.AddResource(documentURL, parsed); err != nil {
		t.Fatal(err)
	}
	return c
}

// answer fails the test when an answer is not as the document says.
func (c *checker) answer(h *Handler, request *http.Request, r reply) {
	c.t.Helper()
	_, pattern := h.mux.Handler(&http.Request{Method: request.Method, URL: request.URL, Host: request.Host})
	if pattern == "/" || strings.HasSuffix(pattern, documentPath) {
		return
	}
	method, path, _ := strings.Cut(pattern, " ")
	operation := pointer(c.document, "paths", path, strings.ToLower(method))
	where := []string{"paths", path, strings.ToLower(method), "responses", strconv.Itoa(r.status)}
	response := pointer(operation, "responses", strconv.Itoa(r.status))
	if response == nil {
		c.t.Errorf("%s %s answers %d, which the document does not have: %s", method, path, r.status, r.body)
		return
	}
	if ref, ok := pointer(response, "$ref").(string); ok {
		where = strings.Split(strings.TrimPrefix(ref, "#/"), "/")
		response = pointer(c.document, where...)
	}
	kind, _, _ := strings.Cut(r.header.Get("Content-Type"), ";")
	if r.status == http.StatusNoContent {
		return
	}
	schema := pointer(response, "content", kind, "schema")
	if schema == nil {
		c.t.Errorf("%s %s answers %d with %q, which the document does not have", method, path, r.status, kind)
		return
	}
	if kind == "text/event-stream" {
		return
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(r.body))
	if err != nil {
		c.t.Errorf("%s %s: %v: %s", method, path, err, r.body)
		return
	}
	if err := c.schema(append(where, "content", kind, "schema")).Validate(value); err != nil {
		c.t.Errorf("%s %s: the answer is not as the document says: %v\n%s", method, path, err, r.body)
	}
}

// schema compiles the schema at a place of the document.
func (c *checker) schema(where []string) *jsonschema.Schema {
	c.mu.Lock()
	defer c.mu.Unlock()
	var location strings.Builder
	location.WriteString(documentURL + "#")
	for _, step := range where {
		fmt.Fprintf(&location, "/%s", strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace(step))
	}
	key := location.String()
	if c.schemas[key] == nil {
		compiled, err := c.compiler.Compile(key)
		if err != nil {
			c.t.Fatal(err)
		}
		c.schemas[key] = compiled
	}
	return c.schemas[key]
}

// pointer returns what stands at a place, nil where nothing does.
func pointer(v any, steps ...string) any {
	for _, step := range steps {
		object, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = object[step]
	}
	return v
}
