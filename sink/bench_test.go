package sink

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// BenchmarkAttempt is compared with BenchmarkBareLoop, which makes the same posts without
// signature, guard or classification.
func BenchmarkAttempt(b *testing.B) {
	r := requestTo(serve(b, discard))
	w := newTestWebhook(b, nil)
	request := r.of(w)
	b.ReportAllocs()
	for b.Loop() {
		if result := w.Attempt(b.Context(), request); result.Outcome != Succeeded {
			b.Fatal(result.Error)
		}
	}
}

func BenchmarkBareLoop(b *testing.B) {
	r := requestTo(serve(b, discard))
	client := &http.Client{}
	defer client.CloseIdleConnections()
	b.ReportAllocs()
	for b.Loop() {
		response, err := client.Post(r.URL, "application/json", bytes.NewReader(r.Body))
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
}

func discard(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }

// BenchmarkIdle reports what an idle connection costs this process, plain and over TLS. The server
// is a process of its own.
func BenchmarkIdle(b *testing.B) {
	if os.Getenv(idleServerEnv) != "" {
		serveIdle()
	}
	for _, scheme := range []string{"http", "https"} {
		b.Run(scheme, func(b *testing.B) {
			for b.Loop() {
				reportIdle(b, scheme)
			}
		})
	}
}

// reportIdle opens a thousand connections to a server of its own.
func reportIdle(b *testing.B, scheme string) {
	const connections = 1000
	server := exec.CommandContext(b.Context(), os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkIdle$")
	server.Env = append(os.Environ(), idleServerEnv+"="+scheme)
	out, err := server.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
	base, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	w := newTestWebhook(b, func(c *WebhookConfig) { c.MaxIdlePerHost = connections })
	w.client.tls.InsecureSkipVerify = true // its certificate is made for this
	before := inUse()
	request := requestTo(strings.TrimSpace(base)).of(w)
	var all sync.WaitGroup
	for range connections {
		all.Go(func() { w.Attempt(b.Context(), request) })
	}
	all.Wait()
	w.client.idle.mu.Lock()
	kept := w.client.idle.oldest.Len()
	w.client.idle.mu.Unlock()
	b.ReportMetric(float64(inUse()-before)/float64(kept)/1024, "KiB/connection")
	b.ReportMetric(float64(kept), "connections")
	w.Close()
}

const idleServerEnv = "QUINTAGO_IDLE_SERVER"

// serveIdle is the server. It answers once enough requests have come that each has a connection of
// its own. It ends with the benchmark.
func serveIdle() {
	var together sync.WaitGroup
	together.Add(1000)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		together.Done()
		together.Wait()
	}))
	if os.Getenv(idleServerEnv) == "https" {
		server.StartTLS()
	} else {
		server.Start()
	}
	fmt.Println(server.URL)
	select {}
}

// inUse returns the memory that is in use after a garbage collection.
func inUse() int64 {
	runtime.GC()
	runtime.GC() // for what pools hold
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
