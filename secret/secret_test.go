package secret

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestText_IsNeverPrinted(t *testing.T) {
	const sentinel = "sentinel-hunter2"
	type wrapped struct {
		Name   string
		Secret Text
		hidden Text
		Ptr    *Text
	}
	s := New(sentinel)
	w := wrapped{Name: "visible", Secret: s, hidden: s, Ptr: &s}

	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T %[1]v", "%10.3s"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", &s)
		fmt.Fprintf(&out, verb+"\n", w)
		fmt.Fprintf(&out, verb+"\n", []wrapped{w})
		fmt.Fprintf(&out, verb+"\n", map[string]Text{"k": s})
	}
	fmt.Fprintln(&out, fmt.Errorf("wrapped: %v %w", w, fmt.Errorf("inner %v", s)))
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("message", "text", s, "struct", w, "pointer", &w, slog.Group("g", "text", s))
	}
	if err := json.NewEncoder(&out).Encode([]any{s, w, &w, map[string]Text{"k": s}}); err != nil {
		t.Fatal(err)
	}

	// The hexadecimal form is what %x would print.
	for _, leak := range []string{sentinel, fmt.Sprintf("%x", sentinel)} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("output contains %q:\n%s", leak, out.String())
		}
	}
	if !strings.Contains(out.String(), "visible") {
		t.Error("the output lost the fields that are no secret")
	}
	if s.Reveal() != sentinel || s.IsZero() || !New("").IsZero() || !(Text{}).IsZero() || !s.Equal(New(sentinel)) || s.Equal(New("other")) {
		t.Error("Reveal, IsZero or Equal do not tell the truth")
	}
}
