package agenttest

import (
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/quintago/webhook-agent/testenv"
)

// Span is a span as a Collector has received it.
type Span struct {
	Name, Trace, ID, Parent string // the ids in hexadecimal digits
	Start, End              time.Time
	Failed                  bool
	Attributes              map[string]string
}

// Collector receives traces by OTLP over HTTP.
type Collector struct {
	URL string

	mu      sync.Mutex
	spans   []Span
	headers http.Header // of the last request
	raw     []byte      // the bodies of all requests
}

// StartCollector starts a Collector, which ends with the test.
func StartCollector(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := c.take(r); err != nil {
			t.Error(err)
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

func (c *Collector) take(r *http.Request) error {
	unzipped, err := gzip.NewReader(r.Body)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(unzipped)
	if err != nil {
		return err
	}
	// A request has the same fields as TracesData, and that needs no gRPC.
	var data tracepb.TracesData
	if err := proto.Unmarshal(body, &data); err != nil {
		return err
	}
	if r.URL.Path != "/v1/traces" || r.Method != http.MethodPost {
		return fmt.Errorf("traces came by %s %s", r.Method, r.URL.Path)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.headers, c.raw = r.Header, append(c.raw, body...)
	for _, resource := range data.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, spanOf(s))
			}
		}
	}
	return nil
}

func spanOf(s *tracepb.Span) Span {
	span := Span{
		Name: s.GetName(), Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
		Start: time.Unix(0, int64(s.GetStartTimeUnixNano())), End: time.Unix(0, int64(s.GetEndTimeUnixNano())),
		Failed: s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR, Attributes: map[string]string{},
	}
	for _, a := range s.GetAttributes() {
		value := a.GetValue().GetStringValue()
		if value == "" {
			value = fmt.Sprint(a.GetValue().GetIntValue())
		}
		span.Attributes[a.GetKey()] = value
	}
	return span
}

// Wait waits until so many spans with the name have come, and returns them.
func (c *Collector) Wait(t testing.TB, name string, n int) (found []Span) {
	t.Helper()
	testenv.Eventually(t, Patience, func() error {
		if found = c.Named(name); len(found) < n {
			return fmt.Errorf("%d spans %q have come, want %d", len(found), name, n)
		}
		return nil
	})
	return found
}

// Named returns the spans with a name, in the order in which they came.
func (c *Collector) Named(name string) (found []Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if s.Name == name {
			found = append(found, s)
		}
	}
	return found
}

// Raw returns the headers of the last request, and the bodies of all.
func (c *Collector) Raw() (headers http.Header, bodies string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.headers, string(c.raw)
}
