package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
)

// Problem is the body of every answer that is no success (RFC 9457). It never holds a value that was
// sent, which may be a secret.
type Problem struct {
	Type   string `json:"type" doc:"Always about:blank: the status says what kind of problem it is" example:"about:blank"`
	Title  string `json:"title" doc:"The text of the status" example:"Not Found"`
	Status int    `json:"status" doc:"The HTTP status" example:"404"`
	Detail string `json:"detail" doc:"What is wrong and what to do, in one sentence" example:"endpoint \"ep_1\": there is none with this id; GET /api/v1/endpoints lists them"`
	Reason string `json:"reason,omitempty" doc:"What is wrong" example:"there is none with this id"`
	Remedy string `json:"remedy,omitempty" doc:"What to do" example:"GET /api/v1/endpoints lists them"`
	// Errors are in the order of the input.
	Errors []FieldProblem `json:"errors,omitempty" doc:"What is wrong with the parts of the request"`

	retryAfter time.Duration
}

// FieldProblem is what is wrong with a part of a request.
type FieldProblem struct {
	Location string `json:"location" doc:"Where it is" example:"body.url"`
	Message  string `json:"message" doc:"What is wrong with it" example:"is not https"`
}

// Error returns the detail.
func (p *Problem) Error() string { return p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders implements huma.HeadersError.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.retryAfter > 0 {
		h.Set("Retry-After", RetryAfter(p.retryAfter))
	}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="webhook-agent"`)
	}
	return h
}

// RetryAfter returns a wait in whole seconds, at least one.
func RetryAfter(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}

// newProblem returns a problem whose sentence is the reason and the remedy.
func newProblem(status int, reason, remedy string) *Problem {
	p := &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: reason, Reason: reason, Remedy: remedy}
	if remedy != "" {
		p.Detail += "; " + remedy
	}
	return p
}

// badParameter returns the problem of a parameter of the query.
func badParameter(name, message string) *Problem {
	p := newProblem(http.StatusUnprocessableEntity, "the request is not valid: query."+name+": "+message, "")
	p.Errors = []FieldProblem{{"query." + name, message}}
	return p
}

// WriteProblem answers a request with a problem.
func WriteProblem(w http.ResponseWriter, status int, reason, remedy string) {
	newProblem(status, reason, remedy).write(w)
}

func (p *Problem) write(w http.ResponseWriter) {
	for name, values := range p.GetHeaders() {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the caller may be gone
}

// humaProblem is huma.NewError: it turns what huma finds wrong with a request into a Problem, without
// the values that huma quotes.
func humaProblem(status int, message string, errs ...error) huma.StatusError {
	p := newProblem(status, message, "")
	for _, err := range errs {
		if err == nil {
			continue
		}
		field := FieldProblem{Location: "body", Message: "cannot be read"}
		if detailed := huma.ErrorDetailer(nil); errors.As(err, &detailed) {
			detail := detailed.ErrorDetail()
			field = FieldProblem{Location: detail.Location, Message: detail.Message}
		}
		p.Errors = append(p.Errors, field)
	}
	if len(p.Errors) > 0 {
		p.Detail = "the request is not valid: " + p.Errors[0].Location + ": " + p.Errors[0].Message
		p.Reason = p.Detail
	}
	return p
}

// remedies replace those of package outbox, which name commands: who calls the API may have no shell
// on the agent's machine.
var remedies = []struct {
	err    error
	status int
	remedy string
}{
	{outbox.ErrNotFound, http.StatusNotFound, ""},
	{outbox.ErrChanged, http.StatusPreconditionFailed, "read it again, and send its ETag as If-Match"},
	{outbox.ErrIdempotency, http.StatusUnprocessableEntity, "use another Idempotency-Key for another request"},
	{outbox.ErrReplayEnded, http.StatusConflict, "start another replay"},
	{outbox.ErrRefused, http.StatusConflict, "enable or correct the endpoint first"},
	{outbox.ErrTooSlow, http.StatusServiceUnavailable, "ask for less: one endpoint, a shorter time, a smaller limit"},
	{manage.ErrManaged, http.StatusConflict, "ask the operator to change it there"},
}

// dataException begins the SQLSTATEs of values that PostgreSQL cannot take.
const dataException = "22"

// unavailable is what a caller sees of an error that is not his.
var unavailable = newProblem(http.StatusServiceUnavailable, "the database does not answer, or not as expected", "try again; the operator finds the reason in the agent's log")

// Explain returns the problem of an error that its caller can do something about, and nil for every
// other error.
func Explain(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	if fields := fieldProblems(err); len(fields) > 0 {
		p := newProblem(http.StatusUnprocessableEntity, "the request is not valid: "+fields[0].Location+": "+fields[0].Message, "")
		p.Errors = fields
		return p
	}
	known, isProblem := errors.AsType[*outbox.Problem](err)
	if !isProblem {
		return nil
	}
	for _, r := range remedies {
		if errors.Is(err, r.err) {
			return fromOutbox(known, r.status, r.remedy)
		}
	}
	if known.Err == nil || strings.HasPrefix(outbox.SQLState(known.Err), dataException) { // it is what the caller gave
		return fromOutbox(known, http.StatusUnprocessableEntity, "")
	}
	return nil
}

// problem turns an error of an operation into a Problem. Errors that no caller can mend are logged,
// and their text is not shown: it may name tables and servers.
func (s *Handler) problem(ctx context.Context, operation string, err error) error {
	if p := Explain(err); p != nil {
		return p
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return unavailable.after(time.Second)
	}
	s.cfg.Log.Error("the API cannot answer", "operation", operation, "error", err)
	return unavailable.after(5 * time.Second)
}

func (p *Problem) after(wait time.Duration) *Problem {
	later := *p
	later.retryAfter = wait
	return &later
}

// fromOutbox turns a problem of package outbox into an answer. remedy replaces one that names
// commands.
func fromOutbox(known *outbox.Problem, status int, remedy string) *Problem {
	if remedy == "" && !strings.Contains(known.Remedy, "webhook-agent ") {
		remedy = known.Remedy
	}
	p := newProblem(status, known.Reason, remedy)
	p.Detail = known.Thing + ": " + p.Detail
	return p
}

// fieldProblems returns the *manage.FieldErrors that are joined in err.
func fieldProblems(err error) (fields []FieldProblem) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, part := range joined.Unwrap() {
			fields = append(fields, fieldProblems(part)...)
		}
		return fields
	}
	if field, ok := errors.AsType[*manage.FieldError](err); ok {
		fields = append(fields, FieldProblem{"body." + field.Field, cmp.Or(field.Unquoted, field.Err.Error())})
	}
	return fields
}
