package sink

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"
)

const maxURLBytes = 2048

// addressError is returned for a URL whose host the address policy refuses. It gives the failure
// the class blocked_address.
type addressError struct{ sentence string }

func (e addressError) Error() string { return e.sentence }

// CheckURL says in one sentence why an endpoint's URL is not usable, or returns nil. The sentence
// holds no part of the URL but its port, because credentials, path and query are secrets. A nil
// does not mean that the host exists, or that its addresses are allowed. Only an attempt finds that
// out.
func (w *Webhook) CheckURL(raw string) error {
	_, err := w.parseURL(raw)
	return err
}

// parseURL parses a URL and applies every rule that its text alone can show to be broken.
func (w *Webhook) parseURL(raw string) (*url.URL, error) {
	if len(raw) > maxURLBytes {
		return nil, fmt.Errorf("the URL is longer than %d characters", maxURLBytes)
	}
	if strings.TrimSpace(raw) != raw {
		return nil, errors.New("the URL begins or ends with a blank; remove it")
	}
	if !utf8.ValidString(raw) {
		return nil, errors.New("the URL is no text in UTF-8; percent-encode what is not ASCII")
	}
	if at := strings.IndexFunc(raw, isInvisible); at >= 0 {
		return nil, fmt.Errorf("the URL has a line break or an invisible character at character %d; remove it", utf8.RuneCountInString(raw[:at])+1)
	}
	u, err := url.Parse(raw)
	if err != nil {
		// The error of url.Parse quotes the URL.
		return nil, errors.New("the URL is malformed; it must look like https://host/path")
	}
	switch {
	case u.Scheme == "http" && w.allowHTTP, u.Scheme == "https":
	case u.Scheme == "http":
		return nil, errors.New("the URL must begin with https:// (http:// needs network.allow_http)")
	default:
		return nil, errors.New("the URL must begin with https://")
	}
	if u.User != nil {
		return nil, errors.New("the URL contains credentials, which are not accepted; verify the signature instead")
	}
	if strings.Contains(raw, "#") {
		return nil, errors.New("the URL contains a fragment, which is never sent; remove it")
	}
	if err := checkPort(u); err != nil {
		return nil, err
	}
	if err := w.checkHost(u); err != nil {
		return nil, err
	}
	u.RawQuery = escapeQuery(u.RawQuery)
	return u, nil
}

// escapeQuery percent-encodes the characters that RFC 3986, section 3.4, does not allow in a query.
// Without that many servers answer 400. Existing escapes stay as they are, and a % that encodes
// nothing is encoded itself.
func escapeQuery(query string) string {
	if !strings.ContainsFunc(query, notInQuery) && !strings.Contains(query, "%") {
		return query
	}
	var b strings.Builder
	for i := range len(query) {
		if c := query[i]; notInQuery(rune(c)) || c >= 0x80 || c == '%' && !isEncoded(query[i:]) {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// isEncoded reports whether s begins with an encoded byte.
func isEncoded(s string) bool {
	if len(s) < len("%20") || s[0] != '%' {
		return false
	}
	_, first := hexValue(s[1])
	_, second := hexValue(s[2])
	return first && second
}

func notInQuery(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"<>[]\\^`{|}#", r) }

func checkPort(u *url.URL) error {
	if u.Port() == "" && !strings.HasSuffix(u.Host, ":") {
		return nil
	}
	if n, err := strconv.ParseUint(u.Port(), 10, 16); err != nil || n == 0 {
		return errors.New("the URL's port must be between 1 and 65535")
	}
	return nil
}

func (w *Webhook) checkHost(u *url.URL) error {
	host := u.Hostname()
	if host == "" {
		return errors.New("the URL has no host")
	}
	// The ASCII form of such a name is a different name, and none of our checks would have seen it.
	if strings.ContainsFunc(host, func(r rune) bool { return r > '~' }) {
		return errors.New("the URL's host name must be ASCII; use its xn-- form")
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if r := w.guard.judge(addr); r.never {
			return addressError{"the URL leads to " + r.String()}
		}
		if !w.guard.opens(addr) {
			return addressError{"the URL has an IP address in place of a host name, which needs network.allow_networks to cover it"}
		}
		return nil
	}
	if isLocalhost(host) {
		if !w.guard.opens(netip.AddrFrom4([4]byte{127, 0, 0, 1})) && !w.guard.opens(netip.IPv6Loopback()) {
			return addressError{"the URL leads to localhost, which needs network.allow_networks to cover it"}
		}
		return nil
	}
	return checkName(host)
}

// isLocalhost reports whether a name is one of this machine's own: a name below localhost (RFC
// 6761, section 6.3), or one that systems have in /etc/hosts.
func isLocalhost(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	switch host[strings.LastIndexByte(host, '.')+1:] {
	case "localhost", "localhost4", "localhost6", "localdomain", "localdomain4", "localdomain6", "ip6-localhost", "ip6-loopback":
		return true
	}
	return false
}

// checkName accepts a full domain name (RFC 1123, section 2.1). It allows underscores, because DNS
// has names with them.
func checkName(host string) error {
	host = strings.TrimSuffix(host, ".")
	labels := strings.Split(host, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, notInLabel) {
			return errors.New("the URL's host is not a valid host name")
		}
	}
	if len(host) > 253 {
		return errors.New("the URL's host name is longer than 253 characters")
	}
	if len(labels) == 1 {
		return errors.New("the URL's host must be a full domain name, with a dot in it")
	}
	// Some resolvers read 127.1 or 0x7f.0.0.1 as an address. No top-level domain begins with a
	// digit.
	if last := labels[len(labels)-1]; last[0] >= '0' && last[0] <= '9' {
		return errors.New("the URL's host looks like an IP address but is not one")
	}
	return nil
}

func notInLabel(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// RedactURL returns the scheme and the host of a URL. These may be shown; the path, query and
// credentials may not.
func RedactURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return "[malformed URL]"
	}
	return Printable(Sanitize(u.Scheme+"://"+u.Host, maxURLBytes))
}
