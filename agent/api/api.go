package api

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/feed"
	"github.com/quintago/webhook-agent/agent/limits"
	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

const (
	// Prefix begins the path of every operation.
	Prefix = "/api/v1"
	// documentPath is where the OpenAPI document is.
	documentPath = Prefix + "/openapi.json"
	// requestTime bounds a request but for streams and samples. The pool ends its queries before.
	requestTime = 15 * time.Second
)

// Config is what the API works with.
type Config struct {
	Config *config.Config
	// DB has the pool of the API.
	DB      *outbox.DB
	Webhook *sink.Webhook
	Log     *slog.Logger
	Version string
	// Feed has what this agent records while it leads.
	Feed *feed.Feed
	// Limits are those of all listeners together.
	Limits *limits.Limits
	// Terms returns what this agent does with each slot.
	Terms func() []TermInfo
	// Answered is called after each request with its operation and status. It may be nil.
	Answered func(operation string, status int)
}

// Handler serves the API for the tokens that its Verifier accepts.
type Handler struct {
	cfg      Config
	verifier *access.Verifier
	limits   *limits.Limits
	mux      *http.ServeMux
	api      huma.API
	document []byte
	origins  *http.CrossOriginProtection
	// The constants of these names; tests set others.
	tailPoll, replayPoll time.Duration
}

// setUp sets variables of the package huma: errors are Problems, and no list is null.
var setUp = sync.OnceFunc(func() {
	huma.NewError = humaProblem
	huma.DefaultArrayNullable = false
})

// New returns the handler of all paths below Prefix.
func New(cfg Config, verifier *access.Verifier) (*Handler, error) {
	setUp()
	s := &Handler{cfg: cfg, verifier: verifier, limits: cfg.Limits, mux: http.NewServeMux(), origins: http.NewCrossOriginProtection(),
		tailPoll: tailPoll, replayPoll: replayPoll}
	s.api = humago.New(s.mux, humaConfig(cfg.Version))
	s.routes()
	document, err := s.finishDocument()
	s.document = document
	s.mux.HandleFunc("GET "+documentPath, s.serveDocument)
	s.mux.HandleFunc("/", s.notFound)
	return s, err
}

// For returns the same API for the tokens of another verifier. The limits are those of both together.
func (s *Handler) For(verifier *access.Verifier) *Handler {
	other := *s
	other.verifier = verifier
	return &other
}

// serveDocument needs no token: the document is the same for everybody.
func (s *Handler) serveDocument(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(s.document)
}

// notFound answers what no operation does.
func (s *Handler) notFound(w http.ResponseWriter, r *http.Request) {
	var allowed []string
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete} {
		probe := &http.Request{Method: method, URL: r.URL, Host: r.Host}
		if _, pattern := s.mux.Handler(probe); pattern != "/" {
			allowed = append(allowed, method)
		}
	}
	if len(allowed) > 0 {
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		WriteProblem(w, http.StatusMethodNotAllowed, "this path has other methods", "use "+strings.Join(allowed, " or "))
		return
	}
	WriteProblem(w, http.StatusNotFound, "there is nothing at this path", "see "+documentPath)
}

// ServeHTTP answers a request.
func (s *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status := &statusWriter{ResponseWriter: w}
	operation := s.serve(status, r)
	if s.cfg.Answered != nil {
		s.cfg.Answered(operation, status.status)
	}
}

// serve returns the operation that the request asked for, "" where it did not come to one.
func (s *Handler) serve(w http.ResponseWriter, r *http.Request) (operation string) {
	if r.Method == http.MethodGet && r.URL.Path == documentPath {
		s.serveDocument(w, r)
		return "openapi"
	}
	caller, err := s.verifier.Verify(r)
	switch {
	case errors.Is(err, access.ErrOff):
		WriteProblem(w, http.StatusForbidden, err.Error(), "set admin.token for the operator, or console.keys for tokens of venues, in the agent's configuration")
		return ""
	case errors.Is(err, access.ErrNoToken):
		WriteProblem(w, http.StatusUnauthorized, err.Error(), "send Authorization: Bearer TOKEN")
		return ""
	case err != nil:
		WriteProblem(w, http.StatusUnauthorized, err.Error(), "")
		return ""
	}
	if p := checkText(r); p != nil {
		p.write(w)
		return ""
	}
	if err := s.origins.Check(r); err != nil {
		WriteProblem(w, http.StatusForbidden, "a page of another origin may not change anything", "call the API from the app's server")
		return ""
	}
	if p := checkBody(r); p != nil {
		p.write(w)
		return ""
	}
	write := r.Method != http.MethodGet && r.Method != http.MethodHead
	if wait := s.limits.Request(caller.Name(), write); wait > 0 {
		s.limits.HoldBack(r.Context())
		tooMany(wait).write(w)
		return ""
	}
	r, p := readBody(w, r)
	if p != nil {
		p.write(w)
		return ""
	}
	call := &call{caller: caller}
	s.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, call)))
	return call.operation
}

// tooMany is the answer to a caller who has to wait.
func tooMany(wait time.Duration) *Problem {
	return newProblem(http.StatusTooManyRequests, "these are too many requests", "wait as Retry-After says").after(wait)
}

// checkText refuses what no row can have in its texts: PostgreSQL would refuse the query.
func checkText(r *http.Request) *Problem {
	if outbox.CheckText(r.URL.Path) != nil {
		return newProblem(http.StatusNotFound, "there is nothing at this path", "see "+documentPath)
	}
	query, err := url.ParseQuery(r.URL.RawQuery) // URL.Query would leave out what it cannot read, a filter as well
	if err != nil {
		return newProblem(http.StatusUnprocessableEntity, "the query of the URL cannot be read", "write % as %25, and ; as %3B")
	}
	for name, values := range query {
		for _, value := range values {
			if err := errors.Join(outbox.CheckText(name), outbox.CheckText(value)); err != nil {
				return newProblem(http.StatusUnprocessableEntity, "a parameter is no text in UTF-8, or has a zero byte in it", "write it in UTF-8")
			}
		}
	}
	return nil
}

// call is a request under way.
type call struct {
	caller    access.Principal
	operation string
}

type callKey struct{}

// callOf returns the call of a request's context. Without one it belongs to nobody, who sees nothing.
func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

// desk returns what the caller may work with.
func (s *Handler) desk(ctx context.Context) *manage.Desk {
	return &manage.Desk{Config: s.cfg.Config, View: callOf(ctx).caller.View(s.cfg.DB), Webhook: s.cfg.Webhook}
}

// view returns what the caller sees.
func (s *Handler) view(ctx context.Context) outbox.View { return callOf(ctx).caller.View(s.cfg.DB) }

// need is who may call an operation.
type need int

const (
	needRead     need = iota // every caller
	needManage               // who may change something
	needOperator             // the operator alone
)

// operation describes an operation of the API.
type operation struct {
	id, method, path string
	tag              string
	summary          string
	description      string
	status           int // of the success; 0 means 200
	need             need
	heavy            bool // it counts much, so a caller has one at a time
	slow             bool // it waits for a customer's server, so it takes the place of a stream
	errors           []int
}

// register adds an operation. What every operation has in common is here: who may call it, the
// limits, the time, errors as problems, and a line in the log for each change.
func register[I, O any](s *Handler, o operation, do func(ctx context.Context, in *I) (*O, error)) {
	op := huma.Operation{
		OperationID: o.id, Method: o.method, Path: Prefix + o.path, Tags: []string{o.tag}, Summary: o.summary, Description: o.description,
		DefaultStatus: o.status, MaxBodyBytes: maxBody + 1, // huma refuses what is as large as its bound
		// The body is in memory. A bound of huma's would end the request: net/http reads the connection
		// meanwhile, to find out whether the caller is gone.
		BodyReadTimeout: -1,
		Errors:          slices.Sorted(maps.Keys(errorsOf(o))),
	}
	if !o.slow { // which takes the place of a stream
		op.Middlewares = huma.Middlewares{s.untilAnswered}
	}
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		call := callOf(ctx)
		call.operation = o.id
		if p := refuse(call.caller, o.need); p != nil {
			return nil, p
		}
		if o.heavy {
			done, ok := s.limits.Heavy(call.caller.Name())
			if !ok {
				return nil, newProblem(http.StatusTooManyRequests, "another request that counts much is under way", "wait for its answer").after(time.Second)
			}
			defer done()
		}
		ctx, leave, p := s.enter(ctx, o)
		if p != nil {
			return nil, p
		}
		defer leave()
		began := time.Now()
		out, err := do(ctx, in)
		if !o.slow { // which waits for a customer's server
			s.limits.Worked(call.caller.Name(), time.Since(began))
		}
		if err != nil {
			return nil, s.problem(ctx, o.id, err)
		}
		if o.need == needManage {
			s.logChange(call.caller, o.id, in)
		}
		return out, nil
	})
}

// untilAnswered takes a place among the requests of the caller until the answer is written: the
// operation has left its own by then, so that who reads slowly keeps no place of others.
func (s *Handler) untilAnswered(hc huma.Context, next func(huma.Context)) {
	r, w := humago.Unwrap(hc)
	done, err := s.limits.Answer(r.Context(), callOf(r.Context()).caller.Name())
	if err != nil {
		busy().write(w)
		return
	}
	defer done()
	next(hc)
}

// busy is the answer to a caller who has to wait for the end of other requests.
func busy() *Problem {
	return newProblem(http.StatusServiceUnavailable, limits.ErrBusy.Error(), "try again").after(time.Second)
}

// errorsOf returns the statuses that an operation may answer beside its success.
func errorsOf(o operation) map[int]bool {
	all := map[int]bool{
		http.StatusUnauthorized: true, http.StatusForbidden: true, http.StatusMisdirectedRequest: true,
		http.StatusUnprocessableEntity: true, http.StatusTooManyRequests: true, http.StatusServiceUnavailable: true,
	}
	if strings.Contains(o.path, "{") {
		all[http.StatusNotFound] = true
	}
	if o.method == http.MethodPost || o.method == http.MethodPatch {
		all[http.StatusBadRequest], all[http.StatusRequestEntityTooLarge], all[http.StatusUnsupportedMediaType] = true, true, true
		all[http.StatusRequestTimeout] = true
	}
	for _, status := range o.errors {
		all[status] = true
	}
	return all
}

// refuse returns the answer to a caller who may not call an operation, or nil.
func refuse(caller access.Principal, n need) *Problem {
	switch {
	case n == needOperator && caller.Role() != access.RoleOperator:
		return newProblem(http.StatusForbidden, "this is for the operator", "use the operator's token")
	case n == needManage && !caller.MayManage():
		return newProblem(http.StatusForbidden, "the token has the scope read", "use one with the scope manage")
	}
	return nil
}

// enter takes a place among the requests under way, which it waits for, or among the streams. It
// bounds the time of a request that is not slow.
func (s *Handler) enter(ctx context.Context, o operation) (bounded context.Context, leave func(), p *Problem) {
	if o.slow {
		done, ok := s.limits.Stream(callOf(ctx).caller.Name())
		if !ok {
			return nil, nil, tooManyStreams()
		}
		return ctx, done, nil
	}
	bounded, cancel := context.WithTimeout(ctx, requestTime)
	done, wait, err := s.limits.Enter(ctx, callOf(ctx).caller.Name())
	switch {
	case err != nil:
		cancel()
		return nil, nil, busy()
	case wait > 0:
		cancel()
		return nil, nil, tooMany(wait)
	}
	return bounded, func() { done(); cancel() }, nil
}

// tooManyStreams is the answer to a caller who has to wait for the end of a stream.
func tooManyStreams() *Problem {
	return newProblem(http.StatusServiceUnavailable, "too many streams and tests are under way", "ask for the list every few seconds instead").after(5 * time.Second)
}

// named is an input with the id of what it changes.
type named interface{ id() string }

// logChange logs who changed what. It logs ids alone: a URL or a text may hold a secret.
func (s *Handler) logChange(caller access.Principal, operation string, in any) {
	args := []any{"operation", operation, "by", string(caller.Role())}
	if caller.Role() == access.RoleVenue {
		args = append(args, "venue", caller.Venue(), "subject", caller.Subject())
	}
	if n, ok := in.(named); ok {
		args = append(args, "id", sink.Printable(n.id()))
	}
	s.cfg.Log.Info("changed by the API", args...)
}

// statusWriter remembers the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
