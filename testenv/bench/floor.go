package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	secrets "github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
	"github.com/quintago/webhook-agent/testenv"
)

// This program can play other roles than the bench, each in a process of its own. A role reads its
// task from standard input and writes its result to standard output, both as JSON.
const (
	floorRole = "floor"
	bareRole  = "bare"
)

// play reads a task, plays a role, and writes the result.
func play[T, R any](ctx context.Context, stdout io.Writer, role func(context.Context, T) (R, error)) error {
	var task T
	if err := json.NewDecoder(os.Stdin).Decode(&task); err != nil {
		return fmt.Errorf("read the task: %w", err)
	}
	result, err := role(ctx, task)
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(result)
}

// ask starts another process that plays a role, and returns its result. The process ends when ctx
// ends, and still returns its result.
func ask[R any](ctx context.Context, role string, task any) (result R, err error) {
	input, err := json.Marshal(task)
	if err != nil {
		return result, err
	}
	self, err := os.Executable()
	if err != nil {
		return result, err
	}
	var output, complaint bytes.Buffer
	cmd := exec.Command(self, role)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &output, &complaint
	p, err := testenv.StartProcess(cmd)
	if err != nil {
		return result, fmt.Errorf("start the %s: %w", role, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(syscall.SIGTERM) })
	defer stop()
	if err := p.Wait(); err != nil {
		return result, fmt.Errorf("the %s: %w: %s", role, err, complaint.String())
	}
	err = json.Unmarshal(output.Bytes(), &result)
	return result, err
}

// floorTask is the task of the floor.
type floorTask struct {
	URLs        []string
	Concurrency int
	Length      time.Duration
	CAFile      string // the certificate to trust, as PEM
	// Client chooses the client of package sink, which the agent uses, instead of net/http.
	Client bool
}

// floorResult is the result of the floor.
type floorResult struct {
	Requests int64
	Took     time.Duration
	CPU      time.Duration // of the process
}

// rate returns the requests a second.
func (r floorResult) rate() float64 { return float64(r.Requests) / r.Took.Seconds() }

// runFloor signs and POSTs to the URLs in turn, with as many requests at a time as the task says.
func runFloor(ctx context.Context, task floorTask) (floorResult, error) {
	send, err := sender(task)
	if err != nil {
		return floorResult{}, err
	}
	var (
		next    atomic.Int64
		workers errgroup.Group
	)
	began := time.Now()
	for range task.Concurrency {
		workers.Go(func() error {
			for time.Since(began) < task.Length && ctx.Err() == nil {
				n := next.Add(1)
				body := envelope(fmt.Sprintf("evt_%026d", n), "venue_1")
				if err := send(int(n)%len(task.URLs), fmt.Sprintf("evt_%026d", n), body); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		return floorResult{}, err
	}
	took := time.Since(began)
	cpu, _, err := testenv.CPU(os.Getpid())
	return floorResult{Requests: next.Load(), Took: took, CPU: cpu}, err
}

// sender returns the function that makes one request to one of the URLs.
func sender(task floorTask) (func(to int, id string, body []byte) error, error) {
	// The agent gets the certificate in the same way.
	if err := os.Setenv("SSL_CERT_FILE", task.CAFile); err != nil {
		return nil, err
	}
	if !task.Client {
		transport := newTransport(task.Concurrency)
		return func(to int, id string, body []byte) error { return post(transport, task.URLs[to], id, body) }, nil
	}
	w, err := sink.NewWebhook(sink.WebhookConfig{
		Version: "bench", Timeout: agentTimeout, AllowHTTP: true, AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		MaxIdlePerHost: task.Concurrency, MaxIdle: max(10_000, task.Concurrency),
	})
	if err != nil {
		return nil, err
	}
	var targets []*sink.Target
	for _, url := range task.URLs {
		targets = append(targets, w.Target(url, secrets.New(secret)))
	}
	return func(to int, id string, body []byte) error {
		r := w.Attempt(context.Background(), sink.Request{Target: targets[to], EventID: id, Body: body})
		if r.Outcome != sink.Succeeded {
			return fmt.Errorf("%s: %s", task.URLs[to], r.Error)
		}
		return nil
	}, nil
}

// newTransport returns a transport with the settings that the agent had while it used net/http.
func newTransport(concurrency int) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: agentTimeout, KeepAlive: 30 * time.Second}
	return &http.Transport{
		DialContext:            dialer.DialContext,
		Protocols:              protocols,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(1024)},
		DisableCompression:     true,
		MaxResponseHeaderBytes: 32 << 10,
		MaxIdleConns:           max(512, concurrency),
		MaxIdleConnsPerHost:    concurrency,
		IdleConnTimeout:        time.Minute,
	}
}

const agentTimeout = 15 * time.Second

// post signs and POSTs one event, and reads the answer.
func post(transport *http.Transport, url, id string, body []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), agentTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	request.Header["Content-Type"] = []string{"application/json"}
	request.Header["User-Agent"] = []string{"bench"}
	request.Header["X-Quintago-Signature"] = []string{"sha256=" + hex.EncodeToString(mac(body))}
	request.Header["Webhook-Id"] = []string{id}
	request.Header["Webhook-Timestamp"] = []string{timestamp}
	request.Header["Webhook-Signature"] = []string{"v1," + base64.StdEncoding.EncodeToString(mac([]byte(id+"."+timestamp+"."), body))}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}

func mac(parts ...[]byte) []byte {
	h := hmac.New(sha256.New, []byte(secret))
	for _, part := range parts {
		h.Write(part)
	}
	return h.Sum(nil)
}

// secret is the secret of all endpoints. It protects nothing.
const secret = "the secret of every endpoint of the bench"

// data is the data of every event.
const data = `{"lead":{"id":"lead_01JZX0V7E3M8R5T2N4K6P9QWCA","name":"Marta & Tiago Nunes","email":"marta@example.com",` +
	`"phone":"+351910000001","stage":"visit_booked","previousStage":"new","eventDate":"2026-09-19","guests":155,` +
	`"notes":"They would like to see the garden, and ask whether the hall can be heated in November."}}`

const eventType = "lead.stage_changed"

// envelope returns the body of a request. It has the same length as the agent's.
func envelope(id, venue string) []byte {
	return fmt.Appendf(nil, `{"id":"%s","type":"%s","created":"2026-02-03T18:05:00Z","venue":"%s","data":%s}`, id, eventType, venue, data)
}
