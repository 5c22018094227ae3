package sink

import (
	"net/url"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/secret"
)

func TestCheckURL_SaysWhatIsWrong(t *testing.T) {
	strict := newTestWebhook(t, func(c *WebhookConfig) { c.AllowHTTP, c.AllowNetworks = false, nil })
	long := "https://h.example/" + strings.Repeat("x", 2048)
	for _, c := range []struct{ url, want string }{
		{"https://hooks.example.com/in?x=1", ""},
		{"HTTPS://HOOKS.example.com:8443", ""},
		{"https://hooks.example.com./", ""},
		{"https://my_hook.example.com/", ""},
		{"https://xn--bcher-kva.example/", ""},
		{"https://169.254.169.254.nip.io/", ""}, // a name: the dial decides
		{long[:2048], ""},
		{long[:2049], "longer than 2048"},
		{"", "must begin with https://"},
		{"hooks.example.com/in", "must begin with https://"},
		{"http://hooks.example.com/", "network.allow_http"},
		{"ftp://hooks.example.com/", "must begin with https://"},
		{"javascript:alert(1)", "must begin with https://"},
		{"https:hooks.example.com", "no host"},
		{"https:///path", "no host"},
		{"https://h.example/\x00", "invisible character at character 19"},
		{"https://h.example/\r\nX: y", "invisible"},
		{"https://h.example/\u200b", "invisible"},
		{"https://h.example/?a=\u2060", "invisible"},
		{"https://h\u00ad.example/", "invisible"},
		{"https://h.example/\xff", "UTF-8"},
		{"https://h.example/%E2%80%8B", ""},
		{"https://localhost.example.com/", ""},
		{"https://a.localhost/", "localhost"},
		{"https://a.B.LocalHost./", "localhost"},
		{"https://localhost.localdomain/", "localhost"},
		{"https://localhost4.localdomain4/", "localhost"},
		{"https://localhost6.localdomain6/", "localhost"},
		{"https://ip6-localhost/", "localhost"},
		{"https://h.example/%zz", "malformed"},
		{" https://h.example/", "begins or ends with a blank"},
		{"https://h.example/\n", "begins or ends with a blank"},
		{"https://h.example/in?x=1\u00a0", "begins or ends with a blank"},
		{"https://localhost./", "localhost"},
		{"https://h.example:x/", "malformed"},
		{"https://[::1/", "malformed"},
		{"https://user:pw@h.example/", "credentials"},
		{"https://user@h.example/", "credentials"},
		{"https://@h.example/", "credentials"},
		{"https://h.example/#frag", "fragment"},
		{"https://h.example/#", "fragment"},
		{"https://h.example:0/", "port"},
		{"https://h.example:99999/", "port"},
		{"https://h.example:/", "port"},
		{"https://a..b/", "not a valid host name"},
		{"https://.example/", "not a valid host name"},
		{"https://h.example../", "not a valid host name"},
		{"https://h!.example/", "not a valid host name"},
		{"https://" + strings.Repeat("a", 64) + ".example/", "not a valid host name"},
		{"https://" + strings.Repeat("a.", 127) + "ab/", "longer than 253"},
		{"https://postgres/", "full domain name"},
		{"https://2130706433/", "full domain name"},
		{"https://127.1/", "looks like an IP address"},
		{"https://0x7f.1/", "looks like an IP address"},
		{"https://0177.0.0.1/", "looks like an IP address"},
		{"https://1.2.3.4.5/", "looks like an IP address"},
		{"https://１２７.０.０.１/", "ASCII"},
		{"https://①②⑦.0.0.1/", "ASCII"},
		{"https://127。0。0。1/", "ASCII"},
		{"https://ⓛⓞⓒⓐⓛhost/", "ASCII"},
		{"https://%E2%91%A0.example/", "ASCII"},
		{"https://8.8.8.8/", "IP address in place of a host name, which needs network.allow_networks"},
		{"https://127.0.0.1/", "network.allow_networks"},
		{"https://[::1]/", "network.allow_networks"},
		{"https://[::ffff:127.0.0.1]/", "network.allow_networks"},
		{"https://[2606:4700:4700::1111]:443/", "network.allow_networks"},
		{"https://localhost/", "network.allow_networks"},
		{"https://LOCALHOST./", "network.allow_networks"},
		{"https://0.0.0.0/", "never allowed"},
		{"https://[::]/", "never allowed"},
		{"https://[fe80::1%25lo]/", "never allowed"},
		{"https://169.254.169.254/", "never allowed"},
		{"https://[::ffff:a9fe:a9fe]/", "never allowed"},
	} {
		checkReason(t, c.url, strict.CheckURL(c.url), c.want)
	}
}

func TestCheckURL_AcceptsWhatTheConfigurationOpens(t *testing.T) {
	loopback := newTestWebhook(t, nil)
	for _, c := range []struct{ url, want string }{
		{"http://127.0.0.1:8080/", ""},
		{"http://[::1]:8080/", ""},
		{"http://localhost:8080/", ""},
		{"http://hooks.example.com/", ""},
		{"https://10.0.0.1/", "network.allow_networks"},
		{"https://169.254.169.254/", "never allowed"},
	} {
		checkReason(t, c.url, loopback.CheckURL(c.url), c.want)
	}
}

// What stands in a URL and may not in a request line is encoded, and what is encoded stays.
func TestTarget_AsksForWhatIsAllowedInARequestLine(t *testing.T) {
	w := newTestWebhook(t, nil)
	for raw, want := range map[string]string{
		"":                          "/",
		"/?":                        "/?",
		"/a?x=1&y=%2F%c3%A9":        "/a?x=1&y=%2F%c3%A9",
		"/a b/%20?x=a b":            "/a%20b/%20?x=a%20b",
		"/?q=é<\">":                 "/?q=%C3%A9%3C%22%3E",
		"/?z=%zz&w=100%":            "/?z=%25zz&w=100%25",
		"/?%":                       "/?%25",
		"/?%a":                      "/?%25a",
		"/?%%20":                    "/?%25%20",
		"/?%2%41":                   "/?%252%41",
		"/?%é":                      "/?%25%C3%A9",
		"/?%u00e9":                  "/?%25u00e9",
		"/?f=%Y-%m-%d&e=%41%4a%4G%": "/?f=%25Y-%25m-%25d&e=%41%4a%254G%25",
	} {
		target := w.Target("http://h.example"+raw, secret.New("secret"))
		if err := target.Err(); err != nil {
			t.Errorf("%q: %v", raw, err)
			continue
		}
		if got, _, _ := strings.Cut(string(target.start), " HTTP/1.1\r\n"); got != "POST "+want {
			t.Errorf("%q is asked for by %q, want %q", raw, got, want)
		}
	}
}

func TestRedactURL_KeepsSchemeAndHostOnly(t *testing.T) {
	for raw, want := range map[string]string{
		"https://user:sentinel@h.example:8443/sentinel?t=sentinel#sentinel": "https://h.example:8443",
		"https://h.example/%zzsentinel":                                     "[malformed URL]",
		"sentinel":                                                          "[malformed URL]",
		"mailto:sentinel":                                                   "[malformed URL]",
		"https://h\u202eexample/sentinel":                                   `https://h\u202eexample`,
	} {
		if got := RedactURL(raw); got != want {
			t.Errorf("RedactURL(%q) = %q, want %q", raw, got, want)
		}
	}
}

func FuzzCheckURL(f *testing.F) {
	for _, s := range []string{"https://h.example/", "https://u:p@h.example/", "https://[::1]:0/#x", "https://①/", "http://h.example:99999?", "https://%41.example"} {
		f.Add(s)
	}
	w := newTestWebhook(f, nil)
	f.Fuzz(func(t *testing.T, raw string) {
		RedactURL(raw)
		u, err := w.parseURL(raw)
		if err != nil {
			return
		}
		host := u.Hostname()
		if host == "" || u.User != nil || u.Fragment != "" || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("%q is accepted", raw)
		}
		// A URL that is accepted has the same meaning for everybody who parses it again.
		if again, err := url.Parse(u.String()); err != nil || again.Host != u.Host {
			t.Errorf("%q is read as %v, then as %v (%v)", raw, u, again, err)
		}
		if _, err := url.PathUnescape(u.RawQuery); err != nil || escapeQuery(u.RawQuery) != u.RawQuery {
			t.Errorf("%q has the query %q (%v)", raw, u.RawQuery, err)
		}
	})
}
