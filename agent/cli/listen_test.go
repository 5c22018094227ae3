package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

const listenBody = `{"id":"evt_1","type":"lead.created","created":"2026-01-31T09:00:00Z","venue":"venue_a","data":{"n":1.0}}`

// listening runs the server of listen until the test ends and returns its URL and what it prints.
func listening(t *testing.T, r *receiver) (url string, said *agenttest.Buffer) {
	t.Helper()
	said = &agenttest.Buffer{}
	r.out.w = said
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return "http://" + listener.Addr().String() + "/hook", said
}

// post sends a request signed with the secret at the time at, after change, and returns the status
// of the answer.
func post(t *testing.T, url, body, signedBody, secretText string, at time.Time, change func(http.Header)) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Sign(req.Header, "evt_1", at, []byte(signedBody), secret.New(secretText), secret.Text{}); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(req.Header)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode
}

func TestListen_VerifiesAndHintsWhatToMend(t *testing.T) {
	reencoded := strings.Replace(listenBody, `,"type"`, `, "type"`, 1)
	for _, test := range []struct {
		name       string
		body       string
		secret     string
		at         time.Time
		change     func(http.Header)
		wantStatus int
		want       []string
	}{
		{"right", listenBody, "the secret", time.Now(), nil, 202,
			[]string{"lead.created", "evt_1", "venue_a", strconv.Itoa(len(listenBody)) + " B  verified", `{"n":1.0}`}},
		{"another secret", listenBody, "another secret", time.Now(), nil, 401,
			[]string{"NOT VERIFIED", "X-Quintago-Signature does not match", "Webhook-Signature does not match", "hint: --secret is not the secret of this endpoint"}},
		{"re-encoded body", reencoded, "the secret", time.Now(), nil, 401,
			[]string{"NOT VERIFIED", "hint: the body was decoded and encoded again"}},
		{"wrong clock", listenBody, "the secret", time.Now().Add(-time.Hour), nil, 401,
			[]string{"NOT VERIFIED", "Webhook-Timestamp is more than 5m0s in the past", "hint: the secret and the body are right, so the clocks differ"}},
		{"header removed", listenBody, "the secret", time.Now(), func(h http.Header) { h.Del(sink.HeaderID) }, 401,
			[]string{"NOT VERIFIED", "Webhook-Id is missing", "hint: headers are missing"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			url, said := listening(t, &receiver{limit: 1000, out: &printer{}, status: 202, secret: secret.New("the secret")})
			if status := post(t, url, test.body, listenBody, test.secret, test.at, test.change); status != test.wantStatus {
				t.Errorf("answered %d, want %d", status, test.wantStatus)
			}
			for _, want := range test.want {
				if !strings.Contains(said.String(), want) {
					t.Errorf("does not say %q:\n%s", want, said)
				}
			}
			if strings.Contains(said.String(), "the secret\n") {
				t.Errorf("says the secret:\n%s", said)
			}
		})
	}
}

// send writes bytes to the server at url and closes its half of the connection; it returns when the
// server has closed the other.
func send(t *testing.T, url, text string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/hook"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, conn) // a reset is an end as well
}

// The server reports what it refuses in its own output, not only to the client.
func TestListen_SaysWhyItRefused(t *testing.T) {
	const head = "POST /hook HTTP/1.1\r\nHost: h\r\n"
	length := fmt.Sprintf("Content-Length: %d\r\n\r\n", len(listenBody))
	for _, test := range []struct {
		name, request, want string
		answered            int
	}{
		{"unsigned", head + length + listenBody, "NOT SIGNED, refused with 401", 401},
		{"wrong signature", head + "X-Quintago-Signature: sha256=00\r\n" + length + listenBody, "NOT VERIFIED, refused with 401", 401},
		{"a GET", "GET /hook HTTP/1.1\r\nHost: h\r\n\r\n", "refused with 405: the method GET: webhooks are sent by POST", 405},
		{"too large", head + "Content-Length: 1001\r\n\r\n" + strings.Repeat("x", 1001), "refused with 413: a body of more than 1000 B", 413},
		{"too large in chunks", head + "Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + strings.Repeat("x", 1001) + "\r\n0\r\n\r\n", "refused with 413: a body of more than 1000 B", 413},
		{"cut short", head + length + listenBody[:10], fmt.Sprintf("refused with 400: a body that did not come to its end: 10 bytes came of the %d that were announced", len(listenBody)), 400},
		{"chunks cut short", head + "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"id\"\r\n", "refused with 400: a body that did not come to its end: 5 bytes came", 400},
		{"encoded", head + "Content-Encoding: gzip\r\n" + length + listenBody, "refused with 415: a body with Content-Encoding gzip: webhooks are sent as they are", 415},
		{"TLS", "\x16\x03\x01\x00\x05hello", "refused: a TLS connection: listen speaks plain HTTP, so the endpoint's URL must begin with http:// here", 0},
		{"a malformed head", "POST /hook\r\n\r\n", "refused: something that is no HTTP request", 0},
		{"a head cut short", head, "refused: something that is no HTTP request", 0},
		{"OPTIONS of the server", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "refused with 405: the method OPTIONS: webhooks are sent by POST", 405},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, asJSON := range []bool{false, true} {
				url, said := listening(t, &receiver{limit: 1000, out: &printer{asJSON: asJSON}, status: 202, secret: secret.New("the secret")})
				send(t, url, test.request)
				if !asJSON {
					testenv.Eventually(t, agenttest.Patience, func() error {
						if !strings.Contains(said.String(), test.want) {
							return fmt.Errorf("does not say %q:\n%s", test.want, said)
						}
						return nil
					})
					continue
				}
				testenv.Eventually(t, agenttest.Patience, func() error {
					lines := strings.Split(strings.TrimSpace(said.String()), "\n")
					var got reception
					if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
						return err
					}
					if got.Answered != test.answered || got.Refused == "" && (got.Verified == nil || *got.Verified) {
						return fmt.Errorf("as JSON: %s", said)
					}
					return nil
				})
			}
		})
	}
}

func TestListen_SaysThatAKeptConnectionBringsWhatIsNoRequest(t *testing.T) {
	url, said := listening(t, &receiver{limit: 1000, out: &printer{}, status: 202})
	conn, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/hook"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "POST /hook HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if _, err := io.WriteString(conn, "junk\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, in) // until the server ends it
	testenv.Eventually(t, 10*time.Second, func() error {
		if !strings.Contains(said.String(), "refused: something that is no HTTP request") {
			return fmt.Errorf("it says:\n%s", said)
		}
		return nil
	})
}

func TestListen_PrintsOneJSONObjectForEachRequest(t *testing.T) {
	url, said := listening(t, &receiver{limit: 1000, out: &printer{asJSON: true}, status: 200, secret: secret.New("the secret")})
	post(t, url, listenBody, listenBody, "the secret", time.Now(), nil)
	post(t, url, "not JSON \x1b[31m", "not JSON \x1b[31m", "another", time.Now(), nil)
	var got []reception
	decoder := json.NewDecoder(bytes.NewReader(said.Bytes()))
	for decoder.More() {
		var one reception
		if err := decoder.Decode(&one); err != nil {
			t.Fatalf("%v in %s", err, said)
		}
		got = append(got, one)
	}
	if len(got) != 2 || strings.Count(said.String(), "\n") != 2 {
		t.Fatalf("%d objects in %s", len(got), said)
	}
	if r := got[0]; r.ID != "evt_1" || r.Type != "lead.created" || r.Verified == nil || !*r.Verified || string(r.Data) != `{"n":1.0}` {
		t.Errorf("the first: %+v", r)
	}
	if r := got[1]; r.ID != "evt_1" || r.Verified == nil || *r.Verified || len(r.Problems) != 2 || r.Hint == "" {
		t.Errorf("the second: %+v", r)
	}
}

func TestListen_WithoutASecretPrintsAndRefusesOnlyOtherMethods(t *testing.T) {
	url, said := listening(t, &receiver{limit: 1000, out: &printer{}, status: 500})
	if status := post(t, url, listenBody, listenBody, "any", time.Now(), nil); status != 500 {
		t.Errorf("answered %d, want 500", status)
	}
	if !strings.Contains(said.String(), "not verified") || !strings.Contains(said.String(), "signatures are not verified") {
		t.Errorf("does not say that nothing is verified:\n%s", said)
	}
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET is answered %d, want 405", resp.StatusCode)
	}
	if !strings.Contains(said.String(), "refused with 405: the method GET: webhooks are sent by POST") {
		t.Errorf("does not say why:\n%s", said)
	}
}

func TestListen_SaysWhatToDoAboutAPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	if status, _, stderr := run(t, "listen", "--addr", taken.Addr().String()); status != exitFailed || !strings.HasSuffix(stderr, "address already in use; free the port or choose another\n") {
		t.Errorf("status %d: %s", status, stderr)
	}
}
