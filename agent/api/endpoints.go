package api

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// Endpoint is an endpoint as the API shows it, without its secret.
type Endpoint struct {
	outbox.EndpointInfo
	// DisableAfter is the number of consecutive failures that disables it.
	DisableAfter int `json:"disable_after" doc:"The number of consecutive failures that disables it"`
}

// NewEndpoint is an endpoint with its secret, in the one answer that has it.
type NewEndpoint struct {
	Endpoint
	Secret *string `json:"secret" nullable:"true" doc:"The signing secret. It is shown in this answer alone; null when the request is a repeated one"`
}

// EndpointPath is the input of an operation on an endpoint.
type EndpointPath struct {
	EndpointID string `path:"endpoint_id" minLength:"1" maxLength:"200" example:"ep_01K5M2"`
}

func (p EndpointPath) id() string { return p.EndpointID }

// endpointAnswer is an endpoint with its ETag.
type endpointAnswer struct {
	ETag string `header:"ETag" doc:"Send it as If-Match to change the endpoint only as it is now"`
	Body Endpoint
}

// Conditional is the input of a change that may be bound to a state of the endpoint.
type Conditional struct {
	IfMatch string `header:"If-Match" maxLength:"200" doc:"An ETag of the endpoint: it is changed only if it has this one"`
}

// etag is the time of the last write, in microseconds: a trigger sets it at each.
func etag(updated *time.Time) string {
	if updated == nil {
		return ""
	}
	return `"` + strconv.FormatInt(updated.UnixMicro(), 10) + `"`
}

// updated returns the time that an ETag stands for, nil where any will do. A text that is no ETag of
// this API matches no endpoint.
func (c Conditional) updated() *time.Time {
	text := strings.TrimSpace(c.IfMatch)
	if text == "" || text == "*" {
		return nil
	}
	at := time.Unix(0, 0) // no endpoint has it
	if micros, err := strconv.ParseInt(strings.Trim(text, `"`), 10, 64); err == nil && len(text) > 1 && text[0] == '"' && text[len(text)-1] == '"' {
		at = time.UnixMicro(micros)
	}
	return &at
}

// endpoint returns an endpoint as the caller may see it: the operator sees the host of its URL alone,
// since the rest may be a credential of the venue's.
func (s *Handler) endpoint(ctx context.Context, e outbox.EndpointInfo) Endpoint {
	if callOf(ctx).caller.Role() != access.RoleVenue {
		e.URL = sink.RedactURL(e.URL)
	}
	e.Events = noNull(e.Events)
	e.OlderSecretsUntil = noNull(e.OlderSecretsUntil)
	return Endpoint{e, s.cfg.Config.Delivery.DisableAfter}
}

// maxPage is how many bytes of endpoints one page has, about: their rows may be written by SQL, and
// hold more than the API allows.
const maxPage = 1 << 20

// fitting returns how many of the endpoints one page has: as many as fit, and one at least.
func fitting(endpoints []outbox.EndpointInfo, limit int) (n int) {
	for size := 0; n < min(len(endpoints), limit); n++ {
		e := endpoints[n]
		size += len(e.URL) + len(e.Description) + len(e.LastError) + len(e.Unusable)
		for _, event := range e.Events {
			size += len(event)
		}
		if n > 0 && size > maxPage {
			break
		}
	}
	return n
}

// cursorMark begins a cursor of the list of endpoints. Those of package outbox begin with another byte.
const cursorMark = 'E'

// endpointCursor returns the cursor of the page behind an endpoint.
func endpointCursor(id string) string {
	return base64.RawURLEncoding.EncodeToString(append([]byte{cursorMark}, id...))
}

// endpointOf returns the endpoint that a page is behind, "" for the first page.
func endpointOf(cursor string) (id string, err error) {
	if cursor == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || len(b) < 2 || b[0] != cursorMark || outbox.CheckText(string(b[1:])) != nil {
		return "", badParameter("cursor", "is not one of this list; copy it from the field next of the page before")
	}
	return string(b[1:]), nil
}

// hideURLs keeps only the scheme and the host of each URL.
func hideURLs(endpoints []outbox.EndpointInfo) []outbox.EndpointInfo {
	for i := range endpoints {
		endpoints[i].URL = sink.RedactURL(endpoints[i].URL)
	}
	return endpoints
}

// showEndpoint is the answer of operations that change an endpoint.
func (s *Handler) showEndpoint(ctx context.Context, id string) (*endpointAnswer, error) {
	e, err := s.view(ctx).Endpoint(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.endpointAnswer(ctx, e)
}

func (s *Handler) endpointAnswer(ctx context.Context, e outbox.EndpointInfo) (*endpointAnswer, error) {
	one := []outbox.EndpointInfo{e}
	if err := s.view(ctx).FindLastSuccesses(ctx, one); err != nil {
		return nil, err
	}
	return &endpointAnswer{etag(e.Updated), s.endpoint(ctx, one[0])}, nil
}

type listEndpoints struct {
	Venue string `query:"venue" maxLength:"200" doc:"Only of this venue (for the operator)"`
	State string `query:"state" enum:"enabled,disabled,unusable"`
	Query string `query:"query" maxLength:"200" doc:"Only those whose host or description has this text"`
	Paging
}

type createEndpoint struct {
	Idempotent
	Body struct {
		Venue       string   `json:"venue,omitempty" maxLength:"200" doc:"Whose events are sent. The operator has to name it, a venue's token has one already"`
		URL         string   `json:"url" maxLength:"2000" doc:"Where to, an https URL" example:"https://example.com/hook"`
		Events      []string `json:"events" minItems:"1" maxItems:"100" maxLength:"200" doc:"Event types: lead.created, lead.* or *"`
		Description string   `json:"description,omitempty" maxLength:"1000"`
		Secret      string   `json:"secret,omitempty" maxLength:"500" doc:"The signing secret; made when it is missing"`
	}
}

// headerIdempotency is the header of Idempotent.
const headerIdempotency = "Idempotency-Key"

// Idempotent is the input of an operation that may be repeated.
type Idempotent struct {
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"200" doc:"A text of the caller's. A repeated request with it makes nothing new and answers with what is there"`
}

// idempotency returns the key with a hash of the request. The secret is left out: a hash of a short
// one could be guessed from a dump.
func (i Idempotent) idempotency(request any) outbox.Idempotency {
	if i.IdempotencyKey == "" {
		return outbox.Idempotency{}
	}
	text, _ := json.Marshal(request) // of texts and numbers
	sum := sha256.Sum256(text)
	return outbox.Idempotency{Key: i.IdempotencyKey, Hash: sum[:]}
}

type createdEndpoint struct {
	Status   int
	Location string `header:"Location"`
	ETag     string `header:"ETag"`
	Body     NewEndpoint
}

type patchEndpoint struct {
	EndpointPath
	Conditional
	Body struct {
		URL         *string   `json:"url,omitempty" maxLength:"2000"`
		Events      *[]string `json:"events,omitempty" minItems:"1" maxItems:"100" maxLength:"200"`
		Description *string   `json:"description,omitempty" maxLength:"1000"`
	}
}

type deleteEndpoint struct {
	EndpointPath
	Conditional
}

type enableEndpoint struct {
	EndpointPath
	Body *struct {
		Replay *struct {
			Since    *time.Time      `json:"since,omitempty" doc:"From this time of the event on; without it everything"`
			Statuses []outbox.Status `json:"statuses,omitempty" enum:"missed,failed,succeeded" minItems:"1" maxItems:"3"`
		} `json:"replay,omitempty" doc:"Also send what the endpoint missed"`
	} `required:"false"`
}

// Enabled is an endpoint that was enabled, with the replays that began.
type Enabled struct {
	Endpoint
	Replays []outbox.ReplayInfo `json:"replays" doc:"The replays that were asked for"`
}

type rotateSecret struct {
	EndpointPath
	Conditional
	Body *struct {
		Overlap string `json:"overlap,omitempty" maxLength:"20" doc:"How long the former secret also signs: 24h, 7d, 0s" default:"24h"`
		Secret  string `json:"secret,omitempty" maxLength:"500" doc:"The new secret; made when it is missing"`
	} `required:"false"`
}

// RotatedSecret is what came of a rotation.
type RotatedSecret struct {
	Changed             bool       `json:"changed" doc:"Whether the endpoint has another secret now"`
	Secret              *string    `json:"secret" nullable:"true" doc:"The new secret, where it was made. It is shown in this answer alone"`
	PreviousSecretUntil *time.Time `json:"previous_secret_until" nullable:"true" doc:"When the former secret stops signing, null when it has stopped"`
}

type testEndpoint struct {
	EndpointPath
	Body *struct {
		Type string `json:"type,omitempty" maxLength:"200" doc:"The event type; without it the first that the endpoint has asked for"`
	} `required:"false"`
}

type endpointStats struct {
	EndpointPath
	Window string `query:"window" enum:"1h,24h,7d,30d" default:"24h"`
}

var (
	errMissing  = errors.New("is missing")
	errDuration = errors.New("is no duration; write 24h, 7d or 0s")
)

// statsWindows are the values of the parameter window.
var statsWindows = map[string]time.Duration{"1h": time.Hour, "24h": 24 * time.Hour, "7d": 7 * config.Day, "30d": 30 * config.Day}

func (s *Handler) endpointRoutes() {
	register(s, operation{
		id: "list-endpoints", method: http.MethodGet, path: "/endpoints", tag: tagEndpoints, summary: "List endpoints",
		description: "In the order of their ids, which is that of their creation.",
	}, func(ctx context.Context, in *listEndpoints) (*page[Endpoint], error) {
		after, err := endpointOf(in.Cursor)
		if err != nil {
			return nil, err
		}
		found, err := s.view(ctx).Endpoints(ctx, outbox.EndpointFilter{Venue: in.Venue, State: in.State, Query: in.Query, After: after, Limit: in.Limit + 1})
		if err != nil {
			return nil, err
		}
		next := ""
		if n := fitting(found, in.Limit); n < len(found) {
			found = found[:n]
			next = endpointCursor(found[n-1].ID)
		}
		if err := s.view(ctx).FindLastSuccesses(ctx, found); err != nil {
			return nil, err
		}
		endpoints := make([]Endpoint, len(found))
		for i, e := range found {
			endpoints[i] = s.endpoint(ctx, e)
		}
		return pageOf(endpoints, next), nil
	})
	register(s, operation{
		id: "create-endpoint", method: http.MethodPost, path: "/endpoints", tag: tagEndpoints, need: needManage, status: http.StatusCreated,
		summary:     "Register an endpoint",
		description: "Events that commit from now on are sent to it. The answer alone has its secret. A repeated request answers 200, without the secret.",
	}, s.createEndpoint)
	register(s, operation{
		id: "show-endpoint", method: http.MethodGet, path: "/endpoints/{endpoint_id}", tag: tagEndpoints, summary: "Show an endpoint",
	}, func(ctx context.Context, in *EndpointPath) (*endpointAnswer, error) {
		return s.showEndpoint(ctx, in.EndpointID)
	})
	register(s, operation{
		id: "change-endpoint", method: http.MethodPatch, path: "/endpoints/{endpoint_id}", tag: tagEndpoints, need: needManage,
		summary: "Change the URL, the event types or the description of an endpoint", errors: []int{http.StatusConflict, http.StatusPreconditionFailed},
	}, s.changeEndpoint)
	register(s, operation{
		id: "delete-endpoint", method: http.MethodDelete, path: "/endpoints/{endpoint_id}", tag: tagEndpoints, need: needManage, status: http.StatusNoContent,
		summary: "Remove an endpoint", description: "Its log stays. What was pending for it is kept as missed.",
		errors: []int{http.StatusConflict, http.StatusPreconditionFailed},
	}, func(ctx context.Context, in *deleteEndpoint) (*struct{}, error) {
		return nil, s.desk(ctx).Remove(ctx, in.EndpointID, in.updated())
	})
	register(s, operation{
		id: "enable-endpoint", method: http.MethodPost, path: "/endpoints/{endpoint_id}/enable", tag: tagEndpoints, need: needManage,
		summary: "Enable an endpoint and begin a new failure counter", description: "With replay, what it missed is sent as well.",
		errors: []int{http.StatusConflict},
	}, s.enableEndpoint)
	register(s, operation{
		id: "disable-endpoint", method: http.MethodPost, path: "/endpoints/{endpoint_id}/disable", tag: tagEndpoints, need: needManage,
		summary: "Send nothing more to an endpoint and keep its events as missed",
	}, func(ctx context.Context, in *EndpointPath) (*endpointAnswer, error) {
		if _, err := s.view(ctx).DisableEndpoint(ctx, in.EndpointID); err != nil {
			return nil, err
		}
		return s.showEndpoint(ctx, in.EndpointID)
	})
	register(s, operation{
		id: "rotate-secret", method: http.MethodPost, path: "/endpoints/{endpoint_id}/rotate-secret", tag: tagEndpoints, need: needManage,
		summary: "Give an endpoint a new secret", description: "For the overlap each request carries signatures of both secrets. An overlap of 0s ends all former ones.",
		errors: []int{http.StatusConflict, http.StatusPreconditionFailed},
	}, s.rotateSecret)
	register(s, operation{
		id: "test-endpoint", method: http.MethodPost, path: "/endpoints/{endpoint_id}/test", tag: tagEndpoints, need: needManage, slow: true,
		summary: "Send a sample event to an endpoint, now and once", description: "It is not logged and does not count. One in five seconds for each endpoint.",
	}, s.testEndpoint)
	register(s, operation{
		id: "show-endpoint-stats", method: http.MethodGet, path: "/endpoints/{endpoint_id}/stats", tag: tagEndpoints, heavy: true,
		summary: "Count the outcomes of an endpoint's deliveries by time", description: "Of at most the newest 20,000 deliveries; complete says whether these are all, and from since when they are.",
	}, func(ctx context.Context, in *endpointStats) (*answer[outbox.EndpointStats], error) {
		stats, err := s.view(ctx).EndpointStats(ctx, in.EndpointID, statsWindows[in.Window])
		stats.Buckets = noNull(stats.Buckets)
		return &answer[outbox.EndpointStats]{stats}, err
	})
}

func (s *Handler) createEndpoint(ctx context.Context, in *createEndpoint) (*createdEndpoint, error) {
	if in.Body.Venue == "" && callOf(ctx).caller.Role() == access.RoleOperator {
		return nil, &manage.FieldError{Field: "venue", Err: errMissing}
	}
	n := manage.NewEndpoint{
		Venue: in.Body.Venue, URL: secret.New(in.Body.URL), Events: in.Body.Events, Description: in.Body.Description, Secret: secret.New(in.Body.Secret),
	}
	given := in.Body
	given.Secret = ""
	n.Idempotency = in.idempotency(given)
	added, err := s.desk(ctx).Add(ctx, n)
	if err != nil {
		return nil, err
	}
	status := http.StatusCreated
	if added.Repeated {
		status = http.StatusOK
	}
	return &createdEndpoint{status, Prefix + "/endpoints/" + added.ID, etag(added.Updated),
		NewEndpoint{s.endpoint(ctx, added.EndpointInfo), optional(added.Secret)}}, nil
}

func (s *Handler) changeEndpoint(ctx context.Context, in *patchEndpoint) (*endpointAnswer, error) {
	change := outbox.EndpointPatch{Events: in.Body.Events, Description: in.Body.Description, IfUpdated: in.updated()}
	if in.Body.URL != nil {
		url := secret.New(*in.Body.URL)
		change.URL = &url
	}
	e, err := s.desk(ctx).Change(ctx, in.EndpointID, change)
	if err != nil {
		return nil, err
	}
	return s.endpointAnswer(ctx, e)
}

func (s *Handler) enableEndpoint(ctx context.Context, in *enableEndpoint) (*answer[Enabled], error) {
	var missed *outbox.ReplayRequest
	if in.Body != nil && in.Body.Replay != nil {
		missed = &outbox.ReplayRequest{Since: in.Body.Replay.Since, Statuses: in.Body.Replay.Statuses}
		if missed.Statuses == nil {
			missed.Statuses = []outbox.Status{outbox.Missed}
		}
	}
	replays, changed, err := s.desk(ctx).Enable(ctx, in.EndpointID, missed)
	if err != nil {
		if changed { // which register logs where all of it was done
			s.logChange(callOf(ctx).caller, "enable-endpoint", in)
		}
		return nil, err
	}
	shown, err := s.showEndpoint(ctx, in.EndpointID)
	if err != nil {
		return nil, err
	}
	return &answer[Enabled]{Enabled{shown.Body, noNull(replays)}}, nil
}

func (s *Handler) rotateSecret(ctx context.Context, in *rotateSecret) (*answer[RotatedSecret], error) {
	rotation := manage.Rotation{Overlap: 24 * time.Hour, IfUpdated: in.updated()}
	if in.Body != nil {
		rotation.Secret = secret.New(in.Body.Secret)
		if in.Body.Overlap != "" {
			overlap, err := config.ParseDuration(in.Body.Overlap)
			if err != nil {
				return nil, &manage.FieldError{Field: "overlap", Err: errDuration}
			}
			rotation.Overlap = overlap
		}
	}
	rotated, err := s.desk(ctx).Rotate(ctx, in.EndpointID, rotation)
	if err != nil {
		return nil, err
	}
	return &answer[RotatedSecret]{RotatedSecret{rotated.Changed, optional(rotated.Secret), rotated.FormerUntil}}, nil
}

func (s *Handler) testEndpoint(ctx context.Context, in *testEndpoint) (*answer[manage.Sample], error) {
	if _, err := s.view(ctx).Endpoint(ctx, in.EndpointID); err != nil { // one of another venue is not counted
		return nil, err
	}
	if wait := s.limits.Sample(callOf(ctx).caller.Name(), in.EndpointID); wait > 0 {
		return nil, tooMany(wait)
	}
	eventType := ""
	if in.Body != nil {
		eventType = in.Body.Type
	}
	sample, err := s.desk(ctx).Send(ctx, in.EndpointID, eventType)
	return &answer[manage.Sample]{sample}, err
}
