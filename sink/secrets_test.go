package sink

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
)

// The helper attempt searches every Result for secrets, in each test that uses it. This file
// searches the errors.
func TestErrors_ShowNoSecret(t *testing.T) {
	w := newTestWebhook(t, nil)
	for _, url := range []string{
		"https://sentinel:sentinel@h.example/", "https://sentinel@/sentinel", "https://h.example/%zzsentinel", "https://h.example/sentinel#sentinel",
		"https://h.example/sentinel\x00", "https://h.example:sentinel/", "https://h.example:0/sentinel?sentinel", "sentinel://h.example", "sentinel",
		"https:sentinel", "https://a..b/sentinel", "https://postgres/sentinel", "https://127.1/sentinel", "https://169.254.169.254/sentinel",
		"https://8.8.8.8/sentinel", "https://\u2460.example/sentinel", "https://h.example/" + string(make([]byte, 2048)) + "sentinel", " https://h.example/sentinel",
	} {
		err := w.CheckURL(url)
		if err == nil {
			t.Errorf("%q is accepted", url)
			continue
		}
		checkNoSentinel(t, err.Error())
		checkNoSentinel(t, err)
		checkNoSentinel(t, w.Attempt(t.Context(), Request{Target: w.Target(url, secret.New(sentinelSecret)), EventID: "evt_1"}))
	}
	short := base64.StdEncoding.EncodeToString([]byte("sentinel"))
	for _, key := range []string{"whsec_sentinel", "whsec_sentinel!", "whsec_" + short, "whsec_sentinel\n"} {
		s := secret.New(key)
		for _, err := range []error{CheckSecret(s), Sign(http.Header{}, "evt_1", time.Now(), nil, s, s), Verify(http.Header{}, nil, time.Now(), s).Err()} {
			if err == nil {
				t.Errorf("%q is accepted", key)
				continue
			}
			checkNoSentinel(t, err.Error())
			if strings.Contains(err.Error(), short) {
				t.Errorf("%q: %v", key, err)
			}
		}
	}
}
