package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

const (
	// heartbeat is the time between two signs of life on a stream. It finds callers that are gone.
	heartbeat = 15 * time.Second
	// streamWrite is how long one write to a stream may take. It replaces the listener's bound, which
	// is for whole answers.
	streamWrite = 10 * time.Second
	// longestStream ends each stream, so that the operator's ones end as well. The caller comes back.
	longestStream = time.Hour
	// tailPoll is the time between two looks at the log while this agent does not lead, and tailRows
	// how many rows one look takes.
	tailPoll = 2 * time.Second
	tailRows = 50
	// replayPoll is the time between two looks at a replay.
	replayPoll = time.Second
)

// stream is an answer of server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html). One goroutine writes it.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	began   bool
	last    time.Time
}

// begin sends the head. After it an error can only end the stream.
func (s *stream) begin() {
	if s.began {
		return
	}
	s.began = true
	h := s.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would hold the events back
	_ = s.control.SetWriteDeadline(time.Now().Add(streamWrite))
	s.w.WriteHeader(http.StatusOK)
	_ = s.write(": begin\n\n")
}

// send sends an event whose data is v as JSON.
func (s *stream) send(event string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.write("event: " + event + "\ndata: " + string(data) + "\n\n")
}

// sendChanged sends an event if its data is not as shown, and a sign of life now and then. It returns
// the data.
func (s *stream) sendChanged(event string, v any, shown []byte) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(data, shown) {
		return data, s.live()
	}
	return data, s.send(event, v)
}

// live sends a sign of life if nothing was sent for a while.
func (s *stream) live() error {
	if time.Since(s.last) < heartbeat {
		return nil
	}
	return s.write(": live\n\n")
}

func (s *stream) write(text string) error {
	s.last = time.Now()
	_ = s.control.SetWriteDeadline(s.last.Add(streamWrite))
	if _, err := io.WriteString(s.w, text); err != nil {
		return err
	}
	return s.control.Flush()
}

// errEnded is the cause of the end of a stream whose token has ended, or that was open for long
// enough. The second can only be after it began.
var errEnded = errors.New("the stream has ended")

// tokenEnded is the answer to who asks for a stream with a token that has ended: a stream ends with its
// token, without the leeway that other requests have.
var tokenEnded = newProblem(http.StatusUnauthorized, "the token has ended", "sign a new one")

// registerStream adds an operation that answers with a stream. do runs until its context ends: with
// the request, with the caller's token, or after longestStream.
func registerStream[I any](s *Handler, o operation, do func(ctx context.Context, in *I, out *stream) error) {
	op := huma.Operation{
		OperationID: o.id, Method: o.method, Path: Prefix + o.path, Tags: []string{o.tag}, Summary: o.summary, Description: o.description,
		Errors: slices.Sorted(maps.Keys(errorsOf(o))),
		Responses: map[string]*huma.Response{"200": {
			Description: "Server-sent events", Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}},
		}},
	}
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*huma.StreamResponse, error) {
		call := callOf(ctx)
		call.operation = o.id
		if p := refuse(call.caller, o.need); p != nil {
			return nil, p
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			if r.Method == http.MethodHead { // which ServeMux passes to GET; nobody would read the stream
				w.Header().Set("Allow", http.MethodGet)
				WriteProblem(w, http.StatusMethodNotAllowed, "a stream has a body", "use GET")
				return
			}
			out := &stream{w: w, control: http.NewResponseController(w)}
			done, ok := s.limits.Stream(call.caller.Name())
			if !ok {
				tooManyStreams().write(w)
				return
			}
			defer done()
			life := longestStream
			if ends := call.caller.Expires(); !ends.IsZero() {
				life = min(life, time.Until(ends))
			}
			ctx, cancel := context.WithTimeoutCause(ctx, life, errEnded)
			defer cancel()
			err := do(ctx, in, out)
			if err != nil && errors.Is(context.Cause(ctx), errEnded) { // it may have ended before the request came: clocks differ
				err = tokenEnded
			}
			if p, ok := s.problem(ctx, o.id, err).(*Problem); ok && err != nil && !out.began { //nolint:errorlint // problem returns no other
				p.write(w)
			}
		}}, nil
	})
}
