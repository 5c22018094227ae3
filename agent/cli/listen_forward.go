package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/quintago/webhook-agent/agent/config"
)

const (
	// forwardTimeout is how long the app may take. It is more than the agent waits by default, so
	// that the agent gives up first, as it does with any receiver.
	forwardTimeout = 30 * time.Second
	// maxAnswerBytes is how much of the app's answer is passed back. The agent keeps less.
	maxAnswerBytes = 1 << 20
)

// hopByHop are the headers that are of one connection, not of the request (RFC 9110, section
// 7.6.1).
var hopByHop = []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// forwarder passes webhooks on to an app on a developer's machine. It may reach any address: who
// runs it has named the app. It follows no redirect and uses no proxy, and neither does the agent.
type forwarder struct {
	to     *url.URL
	client *http.Client
}

// newForwarder returns a forwarder to a URL, or an error that says what is wrong with that.
func newForwarder(to string) (*forwarder, error) {
	u, err := url.Parse(to)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("is %s, must be a URL such as http://localhost:3000/hook", config.Quoted(to))
	case u.User != nil || u.Fragment != "":
		return nil, errors.New("has credentials or a fragment, which are not sent; remove them")
	}
	return &forwarder{to: u, client: &http.Client{
		Timeout:       forwardTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute},
	}}, nil
}

// shown returns the URL without its query, which may be a secret.
func (f *forwarder) shown() string {
	return (&url.URL{Scheme: f.to.Scheme, Host: f.to.Host, Path: f.to.Path}).String()
}

// appAnswer is what the app has answered.
type appAnswer struct {
	status int
	header http.Header
	body   []byte
}

// pass sends the bytes and the headers of a webhook as they came, those of the connection apart.
func (f *forwarder) pass(ctx context.Context, header http.Header, body []byte) (answer appAnswer, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.to.String(), bytes.NewReader(body))
	if err != nil {
		return answer, err
	}
	req.Header = endToEnd(header)
	resp, err := f.client.Do(req)
	if err != nil {
		return answer, f.reason(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode < http.StatusOK { // net/http refuses to answer with it
		return answer, fmt.Errorf("the app answered with status %03d, which is no answer; let it answer with 200 to 599", resp.StatusCode)
	}
	answer = appAnswer{status: resp.StatusCode, header: endToEnd(resp.Header)}
	if answer.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes)); err != nil {
		return answer, f.reason(err)
	}
	return answer, nil
}

// reason says in one line why the app did not answer.
func (f *forwarder) reason(err error) error {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return fmt.Errorf("%s did not answer within %s", f.to.Host, forwardTimeout)
	}
	if wrapped, ok := errors.AsType[*url.Error](err); ok { // it repeats the method and the URL
		err = wrapped.Err
	}
	return fmt.Errorf("%s gave no answer: %w", f.to.Host, err)
}

// endToEnd returns headers without those of the connection.
func endToEnd(header http.Header) http.Header {
	kept := header.Clone()
	for _, list := range header.Values("Connection") {
		for name := range strings.SplitSeq(list, ",") {
			kept.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopByHop {
		kept.Del(name)
	}
	return kept
}

// forward passes a webhook on and answers with what the app answers, so that the agent tries again
// as it would with the app itself. Where the app gives no answer, the answer is 502.
func (r *receiver) forward(w http.ResponseWriter, req *http.Request, body []byte, got *reception) {
	began := time.Now()
	answer, err := r.forwardTo.pass(req.Context(), req.Header, body)
	took := time.Since(began).Milliseconds()
	got.ForwardMS = &took
	if err != nil {
		got.Answered, got.ForwardError = http.StatusBadGateway, err.Error()
		http.Error(w, "webhook-agent listen: "+err.Error(), got.Answered)
		return
	}
	got.Answered = answer.status
	for name, values := range answer.header {
		if name != "Content-Length" { // the body may be cut
			w.Header()[name] = values
		}
	}
	w.WriteHeader(answer.status)
	_, _ = w.Write(answer.body) // the agent may have gone
}

// forwardText says what came of passing a request on.
func (got reception) forwardText() string {
	switch {
	case got.ForwardMS == nil:
		return ""
	case got.ForwardError != "":
		return fmt.Sprintf("not passed on, answered %d: %s", got.Answered, got.ForwardError)
	}
	return fmt.Sprintf("passed on, answered %d after %d ms", got.Answered, *got.ForwardMS)
}
