package api

import (
	"context"
	"net/http"
	"time"

	"github.com/quintago/webhook-agent/outbox"
)

// ReplayRequest names what to send again.
type ReplayRequest struct {
	EndpointID string          `json:"endpoint_id,omitempty" maxLength:"200"`
	EventIDs   []string        `json:"event_ids,omitempty" minItems:"1" maxItems:"1000" doc:"These events, to one endpoint or to all that have them. Without them all of the endpoint whose event was created from since on and before until"`
	Statuses   []outbox.Status `json:"statuses,omitempty" enum:"missed,failed,succeeded" minItems:"1" maxItems:"3" doc:"Only deliveries that ended so. Without it missed and failed, for named events all three"`
	Since      *time.Time      `json:"since,omitempty"`
	Until      *time.Time      `json:"until,omitempty"`
}

func (r ReplayRequest) request() outbox.ReplayRequest {
	return outbox.ReplayRequest{EndpointID: r.EndpointID, EventIDs: r.EventIDs, Statuses: r.Statuses, Since: r.Since, Until: r.Until}
}

// startReplay is the body of the operation that starts replays.
type startReplay struct {
	ReplayRequest
	PerSecond whole `json:"per_second,omitempty" minimum:"0" maximum:"10000" doc:"At most so many deliveries a second; 0 for no such bound"`
}

type planReplay struct{ Body ReplayRequest }

// Plans is what a replay would do.
type Plans struct {
	Plans []outbox.ReplayPlan `json:"plans"`
}

type createReplay struct {
	Idempotent
	Body startReplay
}

type createdReplays struct {
	Status int
	Body   struct {
		Data []outbox.ReplayInfo `json:"data" doc:"One replay for each endpoint; none where nothing matches"`
	}
}

type listReplays struct {
	EndpointID string   `query:"endpoint_id" maxLength:"200"`
	State      []string `query:"state" enum:"pending,running,paused,canceled,done,failed" doc:"Several separated by commas"`
	Paging
}

type ReplayPath struct {
	ReplayID string `path:"replay_id" minLength:"1" maxLength:"200"`
}

func (p ReplayPath) id() string { return p.ReplayID }

type paceReplay struct {
	ReplayPath
	Body struct {
		PerSecond whole `json:"per_second" minimum:"0" maximum:"10000" doc:"0 for no bound"`
	}
}

func (s *Handler) replayRoutes() {
	register(s, operation{
		id: "plan-replay", method: http.MethodPost, path: "/replays/plan", tag: tagReplays, heavy: true, summary: "Count what a replay would send again",
		description: "Counted exactly up to 100,000.", errors: []int{http.StatusConflict, http.StatusNotFound},
	}, func(ctx context.Context, in *planReplay) (*answer[Plans], error) {
		plans, err := s.desk(ctx).Plan(ctx, in.Body.request())
		for i, plan := range plans {
			plans[i].EventIDs = noNull(plan.EventIDs)
			if plan.Refusal != nil {
				plans[i].Refused = Explain(plan.Refusal).Detail
			}
		}
		return &answer[Plans]{Plans{noNull(plans)}}, err
	})
	register(s, operation{
		id: "create-replay", method: http.MethodPost, path: "/replays", tag: tagReplays, need: needManage, status: http.StatusAccepted, heavy: true,
		summary: "Send deliveries again that have ended", description: "The agent does it in the background. What has ended so when it comes to it is sent, which may be more or less than a plan counted. A repeated request answers 200, with the replays of the first as they are now.",
		errors: []int{http.StatusConflict, http.StatusNotFound},
	}, func(ctx context.Context, in *createReplay) (*createdReplays, error) {
		started, repeated, err := s.desk(ctx).Replay(ctx, in.Body.request(), outbox.ReplayOptions{PerSecond: int(in.Body.PerSecond), Idempotency: in.idempotency(in.Body)})
		if err != nil {
			return nil, err
		}
		out := &createdReplays{Status: http.StatusAccepted}
		if repeated {
			out.Status = http.StatusOK
		}
		out.Body.Data = noNull(started)
		return out, nil
	})
	register(s, operation{
		id: "list-replays", method: http.MethodGet, path: "/replays", tag: tagReplays, summary: "List replays, newest first",
	}, func(ctx context.Context, in *listReplays) (*page[outbox.ReplayInfo], error) {
		replays, next, err := s.view(ctx).ListReplays(ctx, outbox.ReplayFilter{EndpointID: in.EndpointID, States: in.State, Before: in.Cursor, Limit: in.Limit})
		return pageOf(replays, next), err
	})
	register(s, operation{
		id: "show-replay", method: http.MethodGet, path: "/replays/{replay_id}", tag: tagReplays, summary: "Show how far a replay is",
	}, func(ctx context.Context, in *ReplayPath) (*answer[outbox.ReplayInfo], error) {
		return replayAnswer(s.view(ctx).Replay(ctx, in.ReplayID))
	})
	for _, change := range []struct {
		verb, summary, description string
		do                         func(outbox.View, context.Context, string) (outbox.ReplayInfo, error)
	}{
		{"pause", "Pause a replay", "What was set back to pending already, at most 500, is sent.", outbox.View.PauseReplay},
		{"resume", "Resume a replay that is paused", "", outbox.View.ResumeReplay},
		{"cancel", "Cancel a replay", "What it has not sent is again what it was before.", outbox.View.CancelReplay},
	} {
		register(s, operation{
			id: change.verb + "-replay", method: http.MethodPost, path: "/replays/{replay_id}/" + change.verb, tag: tagReplays, need: needManage,
			summary: change.summary, description: change.description, errors: []int{http.StatusConflict},
		}, func(ctx context.Context, in *ReplayPath) (*answer[outbox.ReplayInfo], error) {
			return replayAnswer(change.do(s.view(ctx), ctx, in.ReplayID))
		})
	}
	register(s, operation{
		id: "pace-replay", method: http.MethodPatch, path: "/replays/{replay_id}", tag: tagReplays, need: needManage,
		summary: "Change how fast a replay sends", errors: []int{http.StatusConflict},
	}, func(ctx context.Context, in *paceReplay) (*answer[outbox.ReplayInfo], error) {
		return replayAnswer(s.view(ctx).SetReplayPace(ctx, in.ReplayID, int(in.Body.PerSecond)))
	})
	registerStream(s, operation{
		id: "stream-replay", method: http.MethodGet, path: "/replays/{replay_id}/stream", tag: tagReplays, summary: "Follow the progress of a replay",
		description: "Events named progress, each with the replay. The last one, of a replay that has ended, ends the stream.",
	}, s.followReplay)
}

func replayAnswer(r outbox.ReplayInfo, err error) (*answer[outbox.ReplayInfo], error) {
	return &answer[outbox.ReplayInfo]{r}, err
}

// followReplay sends a replay each time that it has changed, looking once a second.
func (s *Handler) followReplay(ctx context.Context, in *ReplayPath, out *stream) error {
	ticker := time.NewTicker(s.replayPoll)
	defer ticker.Stop()
	var shown []byte
	for {
		replay, err := s.view(ctx).Replay(ctx, in.ReplayID)
		if err != nil {
			return err
		}
		out.begin()
		if shown, err = out.sendChanged("progress", replay, shown); err != nil || replay.Ended() {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}
