package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// askAPI sends a request to an agent and returns its status and its body.
func askAPI(t *testing.T, token, method, url, body string) (status int, text string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(read)
}

// TestAPI_ServesAVenueFromARunningAgent goes from the endpoint to the delivery as the app's Settings page
// would, and reads the delivery from the live log.
func TestAPI_ServesAVenueFromARunningAgent(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	r := testenv.StartReceiver(t, agenttest.Secret)
	cfg := agenttest.Config(env)
	cfg.Admin.Token = secret.New("operator-0123456789abcdef0123456789")
	cfg.Console.Keys = []secret.Text{secret.New("console-key-0123456789abcdef01234567")}
	cfg.Console.Listen = "127.0.0.1:0"
	agent := start(t, cfg)
	agent.WaitLog("leading")
	console := "http://" + string(regexp.MustCompile(`console=(\S+)`).FindSubmatch(agent.Log.Bytes())[1])
	minted, err := cfg.ConsoleKeys().Mint("venue_1", access.ScopeManage, 5*time.Minute, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	token, operator := minted.Reveal(), cfg.Admin.Token.Reveal()

	// The listener for venues takes no operator and has nothing else.
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 404, "/metrics": 404, "/api/v1/whoami": 401} {
		if status, text := askAPI(t, operator, "GET", console+path, ""); status != want {
			t.Errorf("%s of the listener for venues: status %d, want %d: %s", path, status, want, text)
		}
	}
	if status, text := askAPI(t, token, "GET", agent.AdminURL()+"/metrics", ""); status != 401 {
		t.Errorf("a venue's token opens /metrics: status %d: %s", status, text)
	}

	status, text := askAPI(t, token, "POST", console+"/api/v1/endpoints", fmt.Sprintf(`{"url": %q, "events": ["lead.*"], "secret": %q}`, r.URL, agenttest.Secret))
	if status != 201 {
		t.Fatalf("create: status %d: %s", status, text)
	}
	var endpoint struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal([]byte(text), &endpoint); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), agenttest.Patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, console+"/api/v1/deliveries/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	stream, err := http.DefaultClient.Do(request)
	if err != nil || stream.StatusCode != http.StatusOK {
		t.Fatalf("the stream: %v, %v", stream, err)
	}
	defer stream.Body.Close()
	other := agenttest.AddEndpoint(t, env, "venue_2", r.URL, "*")
	foreign := agenttest.AddEvent(t, env, "venue_2", "lead.created", `{"of": 2}`)
	agenttest.WaitStatus(t, env, foreign, other, "succeeded")
	event := agenttest.AddEvent(t, env, "venue_1", "lead.created", `{"of": 1}`)
	lines := bufio.NewScanner(stream.Body)
	for lines.Scan() && !strings.Contains(lines.Text(), event) {
		if strings.Contains(lines.Text(), foreign) {
			t.Errorf("the stream shows another venue's delivery: %s", lines.Text())
		}
	}
	if !strings.Contains(lines.Text(), `"status":"succeeded"`) {
		t.Errorf("the stream shows %q, want the delivery of %s (%v)", lines.Text(), event, lines.Err())
	}

	if status, text := askAPI(t, token, "GET", console+"/api/v1/deliveries/"+event+"/"+endpoint.ID, ""); status != 200 || !strings.Contains(text, `"request":{"method":"POST"`) {
		t.Errorf("the delivery: status %d: %s", status, text)
	}
	if status, text := askAPI(t, operator, "GET", agent.AdminURL()+"/api/v1/terms", ""); status != 200 || !strings.Contains(text, `"state":"leading"`) {
		t.Errorf("the terms: status %d: %s", status, text)
	}
	if _, text := askAPI(t, operator, "GET", agent.AdminURL()+"/metrics", ""); !strings.Contains(text, `webhook_agent_api_requests_total{code="201",operation="create-endpoint"} 1`) {
		t.Error("the metric of the API does not count")
	}
}
