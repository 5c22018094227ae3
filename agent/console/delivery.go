package console

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// maxPretty is the size of a body beyond which it is shown as it is, in bytes.
const maxPretty = 64 << 10

// deliveryPage is the page of one delivery.
type deliveryPage struct {
	outbox.DeliveryDetail
	Host    string
	Steps   []step
	Request *manage.Request
	Headers []header
	Hidden  bool // there is a body, which an operator has to ask for
	Curl    string
	CanOpen bool // the endpoint is still there
}

// step is a part of the time line of a delivery.
type step struct {
	outbox.AttemptInfo
	Kind string // created, failed, succeeded, next, missed
	When *time.Time
}

// header is a header of a request.
type header struct{ Name, Value string }

func (h *Handler) delivery(v *visit) error { return h.showDelivery(v, !v.isOperator()) }

// revealDelivery shows the body to an operator, who has asked for it.
func (h *Handler) revealDelivery(v *visit) error {
	if v.isOperator() {
		v.log("an operator looks at the data of an event")
	}
	return h.showDelivery(v, true)
}

func (h *Handler) showDelivery(v *visit, withBody bool) error {
	detail, request, err := v.desk().Delivery(v.ctx(), v.r.PathValue("event"), v.r.PathValue("endpoint"))
	if err != nil {
		return err
	}
	page := deliveryPage{DeliveryDetail: detail, Steps: steps(detail)}
	hosts, err := v.view.Hosts(v.ctx(), []string{detail.EndpointID})
	if err != nil {
		return err
	}
	page.Host = hosts[detail.EndpointID]
	_, err = v.view.Endpoint(v.ctx(), detail.EndpointID)
	page.CanOpen = err == nil
	if request == nil {
		return v.show("delivery", page)
	}
	if v.isOperator() {
		request.HideURL()
	}
	page.Request = request
	names := make([]string, 0, len(request.Headers))
	for name := range request.Headers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		page.Headers = append(page.Headers, header{name, request.Headers[name]})
	}
	if page.Hidden = !withBody; withBody {
		page.Curl = curl(request, page.Headers)
	}
	return v.show("delivery", page)
}

// steps returns the time line of a delivery: its event, the failed attempts, and what comes last.
func steps(d outbox.DeliveryDetail) []step {
	line := []step{{Kind: "created", When: d.Created}}
	for _, a := range d.FailedAttempts {
		line = append(line, step{AttemptInfo: a, Kind: "failed", When: &a.At})
	}
	last := outbox.AttemptInfo{Attempt: d.Attempts, Code: d.LastCode, LatencyMS: d.LastLatencyMS, Error: d.LastError}
	switch d.Status {
	case outbox.Succeeded:
		line = append(line, step{AttemptInfo: last, Kind: "succeeded", When: d.Finished})
	case outbox.Missed:
		line = append(line, step{AttemptInfo: outbox.AttemptInfo{Error: d.LastError}, Kind: "missed", When: d.Finished})
	case outbox.Pending:
		line = append(line, step{AttemptInfo: outbox.AttemptInfo{Attempt: d.Attempts + 1}, Kind: "next", When: d.NextAttemptAt})
	case outbox.Failed:
	}
	return line
}

// curl returns shell commands that sign a request with a secret and send it. What comes from others
// stands in single quotes, in which a shell knows no special character.
func curl(r *manage.Request, headers []header) string {
	var b strings.Builder
	b.WriteString("secret='put the secret of the endpoint here'\n")
	b.WriteString("body=" + quoteShell(r.Body) + "\n")
	b.WriteString("curl --request " + r.Method + " " + quoteShell(r.URL))
	for _, h := range headers {
		b.WriteString(" \\\n  --header " + quoteShell(h.Name+": "+h.Value))
	}
	b.WriteString(" \\\n  --header \"" + sink.HeaderSignature + `: sha256=$(printf %s "$body" | openssl dgst -sha256 -hmac "$secret" -r | cut -d ' ' -f 1)"`)
	b.WriteString(" \\\n  --data-binary \"$body\"\n")
	return b.String()
}

// quoteShell returns a text as one word of a POSIX shell.
func quoteShell(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// pretty returns JSON with one field a line, or the text as it is.
func pretty(text string) string {
	var b bytes.Buffer
	if len(text) > maxPretty || json.Indent(&b, []byte(text), "", "  ") != nil {
		return clean(text)
	}
	return clean(b.String())
}

// clean makes what has no look of its own visible: control characters, and marks that change the
// direction of a text. Line breaks and tabs stay.
func clean(text string) string {
	if !strings.ContainsAny(text, "\n\t") {
		return sink.Printable(text)
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		parts := strings.Split(line, "\t")
		for j, part := range parts {
			parts[j] = sink.Printable(part)
		}
		lines[i] = strings.Join(parts, "\t")
	}
	return strings.Join(lines, "\n")
}

// cut returns the beginning and the end of a long id.
func cut(id string) string {
	id = sink.Printable(id)
	if r := []rune(id); len(r) > 22 {
		return string(r[:10]) + "…" + string(r[len(r)-8:])
	}
	return id
}

// brief returns the beginning of a text that may be long.
func brief(text string) string {
	text = sink.Printable(text)
	if r := []rune(text); len(r) > 40 {
		return string(r[:40]) + "…"
	}
	return text
}

// eventPage is the page of one event.
type eventPage struct {
	outbox.EventExplanation
	Data      string
	DataBytes int64
	Hidden    bool // there are data, which an operator has to ask for
	TooLarge  bool
	InOutbox  bool
}

func (h *Handler) event(v *visit) error { return h.showEvent(v, !v.isOperator()) }

// revealEvent shows the data to an operator, who has asked for them.
func (h *Handler) revealEvent(v *visit) error {
	if v.isOperator() {
		v.log("an operator looks at the data of an event")
	}
	return h.showEvent(v, true)
}

func (h *Handler) showEvent(v *visit, withData bool) error {
	id := v.r.PathValue("event")
	explained, err := v.view.ExplainEvent(v.ctx(), id)
	if err != nil {
		return err
	}
	page := eventPage{EventExplanation: explained}
	if explained.Found != "outbox" {
		return v.show("event", page)
	}
	events, err := v.view.Event(v.ctx(), id)
	if err != nil {
		return err
	}
	for _, e := range events {
		if e.Type != explained.Type || e.Venue != explained.Venue {
			continue
		}
		page.InOutbox, page.DataBytes, page.TooLarge = true, e.DataBytes, e.DataBytes > outbox.MaxShownData
		if page.Hidden = !withData; withData {
			page.Data = string(e.Data)
		}
		break
	}
	return v.show("event", page)
}
