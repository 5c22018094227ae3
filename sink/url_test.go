package sink

import (
	"net/url"
	"strings"
	"testing"
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
		{"https://h.example/\x00", "malformed"},
		{"https://h.example/\r\nX: y", "malformed"},
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
	})
}
