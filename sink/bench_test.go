package sink

import (
	"bytes"
	"io"
	"net/http"
	"testing"
)

// BenchmarkAttempt stands against BenchmarkBareLoop, the same posts without signature, guard or classification.
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
