package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

func (a *app) listenCommand() *cobra.Command {
	var (
		addr, forwardTo string
		status          int
	)
	cmd := &cobra.Command{
		Use:   "listen",
		Short: "Receive webhooks here, verify both signatures and print what arrives",
		Long: `listen is a receiver for trying things out. With --secret it verifies X-Quintago-Signature and the Standard Webhooks
signature of each request and says what to mend when one fails; such a request gets status 401. It says why it refuses anything
else, too: a GET, a body that is too large, cut short or encoded, a TLS connection. To let the agent send to
this machine, set network.allow_http and network.allow_networks in its configuration. With --json it prints one JSON
object on a line for each request.

With --forward-to it passes what it has verified on to an app, with the headers and the bytes as they came, and answers with what the
app answers, so that retries can be watched. Where the app gives no answer, listen answers 502. What is not verified is not passed
on. Without --secret everything is.`,
		Example: `  webhook-agent listen --secret env:WEBHOOK_SECRET
  webhook-agent listen --secret env:WEBHOOK_SECRET --forward-to http://localhost:3000/hook
  webhook-agent listen --addr 127.0.0.1:9001 --status 500      to watch retries`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if status < 200 || status > 599 {
				return usagef(cmd, "--status is %d, must be between 200 and 599", status)
			}
			r := &receiver{out: a.printer(), status: status, limit: maxReceivedBytes}
			if forwardTo != "" {
				if cmd.Flags().Changed("status") {
					return usagef(cmd, "--status and --forward-to exclude each other: with --forward-to the app's status is the answer")
				}
				f, err := newForwarder(forwardTo)
				if err != nil {
					return usagef(cmd, "--forward-to %v", err)
				}
				r.forwardTo = f
			}
			s, err := a.secretFlag()
			if err != nil {
				return err
			}
			r.secret = s
			listener, err := net.Listen("tcp", addr)
			if err != nil {
				return fmt.Errorf("--addr: %w; free the port or choose another", err)
			}
			return r.serve(cmd.Context(), listener)
		},
	}
	cmd.Flags().StringVar(&addr, "addr", "127.0.0.1:9000", "listen on this `address`")
	cmd.Flags().StringVar(&a.secret, "secret", "", "the endpoint's `secret`, better as env:NAME or file:/path")
	cmd.Flags().StringVar(&forwardTo, "forward-to", "", "pass what is verified on to an app at this `URL`")
	cmd.Flags().IntVar(&status, "status", http.StatusOK, "the `status` to answer with")
	return cmd
}

// receiver is the server of the command listen.
type receiver struct {
	secret secret.Text // empty when signatures are not verified
	status int
	limit  int64 // greatest size of a body in bytes
	// Where webhooks are passed on to; nil for nowhere.
	forwardTo *forwarder

	mu  sync.Mutex // guards out, because requests arrive at the same time
	out *printer
}

// serve answers requests on listener until ctx ends. It closes listener.
func (r *receiver) serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second, ConnContext: withWatched, ConnState: r.notice,
		DisableGeneralOptionsHandler: true} // so that OPTIONS * is refused and printed as anything else
	// An error of Close is of no use to a person.
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if !r.out.asJSON {
		what := fmt.Sprintf("answering %d", r.status)
		if r.forwardTo != nil {
			what = "passing on to " + r.forwardTo.shown()
		}
		r.out.line("listening on http://%s/, %s; Ctrl-C ends", listener.Addr(), what)
		if r.secret.IsZero() {
			r.out.line("signatures are not verified: give the endpoint's secret by --secret")
		}
	}
	if err := server.Serve(watchedListener{listener}); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("listen on %s: %w", listener.Addr(), err)
	}
	return nil
}

// maxReceivedBytes is the greatest size of a body. It is more than the largest event that
// delivery.max_body allows.
const maxReceivedBytes = 160 << 20

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	heard(req.Context())
	encoding := req.Header.Get("Content-Encoding")
	switch {
	case req.Method != http.MethodPost:
		r.refuse(w, http.StatusMethodNotAllowed, "the method "+sink.Printable(req.Method)+": webhooks are sent by POST")
		return
	case encoding != "" && !strings.EqualFold(encoding, "identity"):
		r.refuse(w, http.StatusUnsupportedMediaType, "a body with Content-Encoding "+sink.Printable(encoding)+
			": webhooks are sent as they are, so something between the agent and here has encoded it, or the request is not the agent's")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, r.limit))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		r.refuse(w, http.StatusRequestEntityTooLarge, "a body of more than "+formatBytes(r.limit))
		return
	}
	if err != nil {
		what := fmt.Sprintf("a body that did not come to its end: %d bytes came", len(body))
		if req.ContentLength >= 0 {
			what += fmt.Sprintf(" of the %d that were announced", req.ContentLength)
		}
		r.refuse(w, http.StatusBadRequest, what)
		return
	}
	got := r.examine(req.Header, body, time.Now())
	got.Answered = r.status
	if got.Verified != nil && !*got.Verified {
		got.Answered = http.StatusUnauthorized
	} else if r.forwardTo != nil {
		r.forward(w, req, body, &got)
		r.say(got)
		return
	}
	w.WriteHeader(got.Answered)
	r.say(got)
}

// refuse answers a request that is no webhook, and prints the reason.
func (r *receiver) refuse(w http.ResponseWriter, status int, what string) {
	http.Error(w, what, status)
	r.say(reception{Answered: status, Refused: fmt.Sprintf("refused with %d: %s", status, what)})
}

// say prints a reception. When nothing is known about the request, it has no time yet, and say sets
// it.
func (r *receiver) say(got reception) {
	if got.Received.IsZero() {
		got.Received, got.Problems = time.Now(), []string{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	got.print(r.out)
}

// reception is what the command listen knows about one request.
type reception struct {
	Received time.Time `json:"received"`
	ID       string    `json:"id"`
	Type     string    `json:"type"`
	Venue    string    `json:"venue"`
	Bytes    int       `json:"bytes"`
	Signed   bool      `json:"signed"` // it has at least one of the two signatures
	// The status of the answer; 0 when no request could be read.
	Answered int `json:"answered"`
	// Why it is no webhook; the other fields are empty then.
	Refused  string `json:"refused"`
	Verified *bool  `json:"verified"` // nil when there is no secret to verify with
	// Why it is not verified, one sentence for each signature.
	Problems []string        `json:"problems"`
	Hint     string          `json:"hint"` // what to correct
	Data     json.RawMessage `json:"data"` // null when the body is no envelope
	// How long the app took, nil when the request was not passed on, and why it gave no answer.
	ForwardMS    *int64 `json:"forward_ms,omitempty"`
	ForwardError string `json:"forward_error,omitempty"`
}

func (r *receiver) examine(h http.Header, body []byte, now time.Time) reception {
	got := reception{Received: now, ID: h.Get(sink.HeaderID), Bytes: len(body), Signed: isSigned(h), Problems: []string{}}
	var envelope struct {
		ID    string          `json:"id"`
		Type  string          `json:"type"`
		Venue string          `json:"venue"`
		Data  json.RawMessage `json:"data"`
	}
	if json.Unmarshal(body, &envelope) == nil {
		got.ID, got.Type, got.Venue, got.Data = envelope.ID, envelope.Type, envelope.Venue, envelope.Data
	}
	if r.secret.IsZero() {
		return got
	}
	v := sink.Verify(h, body, now, r.secret)
	verified := v.Err() == nil
	got.Verified = &verified
	for _, err := range []error{v.Quintago, v.Standard} {
		if err != nil {
			got.Problems = append(got.Problems, err.Error())
		}
	}
	got.Hint = hint(v, h, body)
	return got
}

func isSigned(h http.Header) bool {
	return h.Get(sink.HeaderSignature) != "" || h.Get(sink.HeaderStandardSignature) != ""
}

// hint returns the most likely cause when a signature is wrong. The two schemes fail together or
// alone for different reasons.
func hint(v sink.Verification, h http.Header, body []byte) string {
	missing := h.Get(sink.HeaderSignature) == "" || h.Get(sink.HeaderID) == "" || h.Get(sink.HeaderTimestamp) == "" || h.Get(sink.HeaderStandardSignature) == ""
	switch {
	case v.Err() == nil:
		return ""
	case !isSigned(h):
		return "there is no signature: the request is not the agent's, or something between the agent and here removes its headers"
	case missing:
		return "headers are missing: something between the agent and here removes them, or the request is not the agent's"
	case v.Quintago == nil:
		return "the secret and the body are right, so the clocks differ: set this machine's, and the agent's, by NTP"
	case v.Standard == nil:
		return "the secret is being rotated: the agent sends the event once more, with the other secret, and remembers the one that is accepted"
	case !bytes.HasPrefix(body, []byte(`{"id":"`+h.Get(sink.HeaderID)+`","type":"`)):
		return "the body was decoded and encoded again on its way: signatures are of the bytes as they were sent"
	default:
		return "--secret is not the secret of this endpoint; webhook-agent endpoints rotate-secret sets a new one and prints it"
	}
}

func (got reception) print(out *printer) {
	if out.asJSON {
		line, _ := json.Marshal(got) // its fields can always be encoded
		fmt.Fprintln(out.w, escapeJSON(string(line)))
		return
	}
	if got.Refused != "" {
		out.line("%s  %s", got.Received.Local().Format("15:04:05"), got.Refused)
		return
	}
	verdict := "not verified"
	switch {
	case got.Verified == nil && !got.Signed:
		verdict = "not signed"
	case got.Verified == nil:
	case *got.Verified:
		verdict = "verified"
	case !got.Signed:
		verdict = fmt.Sprintf("NOT SIGNED, refused with %d", got.Answered)
	default:
		verdict = fmt.Sprintf("NOT VERIFIED, refused with %d", got.Answered)
	}
	out.line("%s  %-22s  %s  %s  %s  %s", got.Received.Local().Format("15:04:05"), got.Type, got.ID, got.Venue, formatBytes(int64(got.Bytes)), verdict)
	if len(got.Data) > 0 {
		out.line("          %s", got.Data)
	}
	if text := got.forwardText(); text != "" {
		out.line("          %s", text)
	}
	for _, problem := range got.Problems {
		out.line("          %s", problem)
	}
	if got.Hint != "" {
		out.line("          hint: %s", got.Hint)
	}
}
