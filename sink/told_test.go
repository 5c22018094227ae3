package sink

import (
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/secret"
)

// Characters that a query may not hold are never sent raw, because nginx and Node answer 400 to
// them.
func TestAttempt_SendsQueriesThatServersTake(t *testing.T) {
	var asked string
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) { asked = r.RequestURI })
	for given, want := range map[string]string{
		"/in?name=a b":                "/in?name=a%20b",
		"/in?name=caf\u00e9":          "/in?name=caf%C3%A9",
		`/in?q="x"&y={z}|[1]\^` + "`": "/in?q=%22x%22&y=%7Bz%7D%7C%5B1%5D%5C%5E%60",
		"/in?a=%20%zz&b=1+1":          "/in?a=%20%25zz&b=1+1",
		"/a b/\u00e9?":                "/a%20b/%C3%A9?",
		"/in?a=b&c=d/?:@!$'()*,;":     "/in?a=b&c=d/?:@!$'()*,;",
	} {
		if got := attempt(t, newTestWebhook(t, nil), testRequest{URL: url + given, Secret: secret.New(sentinelSecret), Request: Request{EventID: "evt_1", Body: []byte(testBody)}}); got.Outcome != Succeeded || asked != want {
			t.Errorf("%q is asked for as %q, want %q (%+v)", given, asked, want, got)
		}
	}
}

// The sentence about a redirect says where it leads, as far as that is no secret.
func TestAttempt_SaysWhereARedirectLeads(t *testing.T) {
	var location string
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if location != "" {
			w.Header()["Location"] = []string{location}
		}
		w.WriteHeader(http.StatusMovedPermanently)
	})
	host := url[len("http://"):]
	name, _, _ := net.SplitHostPort(host)
	for to, want := range map[string]string{
		"": "a redirect, which", "https://" + host + sentinelPath: "a redirect to https://, which", sentinelPath + "/": "to the same path with a slash at its end,",
		sentinelPath: "to the same path,", sentinelPath + "?other": "to the same path,", "/login/sentinel-path": "to another path of the same host,",
		"//other.example/sentinel-path": "to the host other.example,", "https://user:sentinel-key@other.example/": "to the host other.example,",
		"http://" + name + ":1" + sentinelPath: "to another port,", "javascript:sentinel": "a redirect, which", "http://[::1": "a redirect, which",
		"http://\u009b31m.example/": `to the host \u009b31m.example,`, "https://" + strings.Repeat("long-name.", 40) + "example/": "to the host long-name.",
	} {
		location = to
		got := attempt(t, newTestWebhook(t, nil), requestTo(url))
		checkClass(t, got, ClassRedirect, 301)
		if !strings.Contains(got.Error, want) || strings.Contains(got.Error, "sentinel") || len(got.Error) > maxErrorBytes {
			t.Errorf("%q: %s, want %q in it", to, got.Error, want)
		}
	}
}

func TestAttempt_NamesAClientCertificateThatIsWanted(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		address, w := serveTLSWith(t, func(c *tls.Config) { c.ClientAuth, c.MaxVersion = tls.RequireAnyClientCert, version })
		checkClass(t, attempt(t, w, requestTo(address)), ClassTLSClientCert, 0)

		// A server that asks for a certificate but does not require one gets none.
		address, w = serveTLSWith(t, func(c *tls.Config) { c.ClientAuth, c.MaxVersion = tls.RequestClientCert, version })
		if got := attempt(t, w, requestTo(address)); got.Outcome != Succeeded {
			t.Errorf("%+v", got)
		}
	}
}

func TestAttempt_NamesNoClientCertificateThatNobodyAskedFor(t *testing.T) {
	address, w := serveTLSWith(t, func(c *tls.Config) {
		c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_RC4_128_SHA} // no client has that: handshake_failure
	})
	checkClass(t, attempt(t, w, requestTo(address)), ClassTLSError, 0)
}
