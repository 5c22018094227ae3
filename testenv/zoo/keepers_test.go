package zoo

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"testing"
)

// visitor sends requests to animals with one client that keeps connections.
type visitor struct {
	t      *testing.T
	z      *Zoo
	client *http.Client
	kept   bool // the last request went on a connection that was kept
}

func newVisitor(t *testing.T, z *Zoo) *visitor {
	t.Helper()
	authority, err := Authority()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	return &visitor{t: t, z: z, client: &http.Client{Transport: transport}}
}

// ask returns the status, or zero and the error if there is none.
func (v *visitor) ask(name string) (status int, err error) {
	v.t.Helper()
	i := slices.IndexFunc(v.z.Animals, func(a Animal) bool { return a.Name == name })
	if i < 0 {
		v.t.Fatalf("there is no %s", name)
	}
	trace := &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { v.kept = c.Reused }}
	request, err := http.NewRequestWithContext(httptrace.WithClientTrace(v.t.Context(), trace), http.MethodPost, v.z.Animals[i].URL, strings.NewReader("{}"))
	if err != nil {
		v.t.Fatal(err)
	}
	response, err := v.client.Do(request)
	if err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, response.Body) // it may be cut
	_ = response.Body.Close()
	return response.StatusCode, nil
}

func TestKeepers_KeepWhatTheySay(t *testing.T) {
	z := Start(t)
	for _, name := range []string{"keeps-5s", "keeps-1s", "token-bucket"} {
		v := newVisitor(t, z)
		for range 2 {
			if status, err := v.ask(name); status != http.StatusOK {
				t.Errorf("%s answers %d: %v", name, status, err)
			}
		}
		if !v.kept {
			t.Errorf("%s has not kept the connection", name)
		}
	}
}

func TestOneConnection_ResetsTheSecond(t *testing.T) {
	z := Start(t)
	first, second := newVisitor(t, z), newVisitor(t, z)
	if status, err := first.ask("one-connection"); status != http.StatusOK {
		t.Fatalf("the first: %d %v", status, err)
	}
	if status, err := second.ask("one-connection"); err == nil {
		t.Errorf("the second is answered %d", status)
	}
}

func TestTokenBucket_RefusesTheSixthAtOnce(t *testing.T) {
	v := newVisitor(t, Start(t))
	refused := 0
	for range 4 * tokens {
		if status, err := v.ask("token-bucket"); err != nil {
			t.Fatal(err)
		} else if status == http.StatusTooManyRequests {
			refused++
		}
	}
	if refused < 2*tokens {
		t.Errorf("%d of %d requests are refused", refused, 4*tokens)
	}
}

func TestAuthority_IsThatOfSoundCertificates(t *testing.T) {
	v := newVisitor(t, Start(t))
	if status, err := v.ask("tls-tame"); status != http.StatusOK {
		t.Errorf("%d %v", status, err)
	}
	for _, name := range []string{"tls-self-signed", "tls-client-1.2", "tls-client-1.3", "tls-h2-only"} {
		if status, err := v.ask(name); err == nil {
			t.Errorf("%s answers %d", name, status)
		}
	}
}
