package console

import (
	"net/http"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/testenv"
)

// What the form proposes is for who comes to it. Who has taken all of it away, and sends the form or
// has it count, wants none of it.
func TestReplays_OfNoStatusSendNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.seedVenue("venue-1")
	user := s.user("venue-1", access.ScopeManage)
	for _, query := range []string{"endpoint=ep_venue-1_2", "event=evt_venue-1_0003"} {
		p := user.want(http.StatusOK, "/replays/new?"+query)
		if !strings.Contains(p.body, `value="failed" checked`) || strings.Contains(p.body, "Choose at least one") {
			t.Errorf("the form of %s proposes nothing: %s", query, p.body)
		}
		// Without a script, the button that counts sends the form as the query of its page.
		if p := user.want(http.StatusUnprocessableEntity, "/replays/new?key=K&"+query); strings.Contains(p.body, " checked") || !strings.Contains(p.body, "Choose at least one") ||
			!strings.Contains(p.body, "<b data-counted>0 deliveries") {
			t.Errorf("counting none of %s shows: %s", query, p.body)
		}
		if p := user.want(http.StatusOK, "/replays/count?key=K&"+query); p.body != `{"text":"0 deliveries","count":0,"errors":{"status":"choose at least one"}}` {
			t.Errorf("the count of none of %s is %s", query, p.body)
		}
		name, value, _ := strings.Cut(query, "=")
		if p := user.post(user.base+"/replays", "key", "K", name, value); p.status != http.StatusUnprocessableEntity || strings.Contains(p.body, " checked") || !strings.Contains(p.body, "Choose at least one") {
			t.Errorf("sending none of %s: status %d: %s", query, p.status, p.body)
		}
	}
	if n := testenv.QueryOne[int64](t, s.env, `select count(*) from webhooks.replays where id <> 'rpl_venue-1'`); n != 0 {
		t.Errorf("forms without a status have made %d replays", n)
	}
}
