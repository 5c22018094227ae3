package sink

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// Class is a stable word for the kind of a failure. The package documentation explains each.
type Class string

const (
	ClassInvalidURL       Class = "invalid_url"
	ClassInvalidSecret    Class = "invalid_secret"
	ClassInvalidEventID   Class = "invalid_event_id"
	ClassBlockedAddress   Class = "blocked_address"
	ClassDNSError         Class = "dns_error"
	ClassConnectRefused   Class = "connect_refused"
	ClassConnectTimeout   Class = "connect_timeout"
	ClassTLSExpired       Class = "tls_expired"
	ClassTLSUntrusted     Class = "tls_untrusted"
	ClassTLSWrongHost     Class = "tls_wrong_host"
	ClassTLSError         Class = "tls_error"
	ClassTLSClientCert    Class = "tls_client_certificate"
	ClassTimeout          Class = "timeout"
	ClassConnectionReset  Class = "connection_reset"
	ClassNotHTTP          Class = "not_http"
	ClassHTTP2Only        Class = "http2_only"
	ClassH2C              Class = "h2c"
	ClassResponseTooLarge Class = "response_too_large"
	ClassRedirect         Class = "redirect"
	ClassHTTPStatus       Class = "http_status"
	ClassNetworkError     Class = "network_error"
	ClassCanceled         Class = "canceled"
	ClassInternalError    Class = "internal_error"
	ClassLocalFault       Class = "local_fault"
)

const (
	maxErrorBytes = 300
	maxNameLength = 60 // the most characters of a host name in a sentence
	maxCertNames  = 3
)

// failure is what an attempt knows about its failure, besides the error.
type failure struct {
	host     string
	tls      bool // the URL is https
	timeout  time.Duration
	deadline bool     // the attempt's deadline has passed
	phase    phase    // how far the attempt came
	blocked  *refusal // the first address that the guard refused, or nil
	// certificate reports whether the server asked for a client certificate. Asking does not mean
	// that it requires one.
	certificate bool
	now         time.Time // by which certificates are judged
}

// classify returns the class of an exchange's error, and one sentence about it. It decides by error
// types where there are any. It quotes the text of an error only if the text comes from a fixed
// table, because other texts hold what the server sent.
func classify(err error, f failure) (Class, string) {
	host := shorten(f.host, maxNameLength)
	var (
		dns  *net.DNSError
		cert *tls.CertificateVerificationError
	)
	switch {
	// A refused address only matters if no other address of the name was connected to.
	case f.blocked != nil && f.phase <= phaseConnect:
		return ClassBlockedAddress, fmt.Sprintf("%s leads to %v", host, f.blocked)
	case f.deadline:
		return timeoutClass(f.phase), fmt.Sprintf("timeout after %v (delivery.timeout) waiting for %v", f.timeout, f.phase)
	case errors.As(err, &dns):
		return ClassDNSError, dnsSentence(dns, host)
	case errors.As(err, &cert):
		return classifyCertificate(cert, host, f.now.UTC())
	case errors.Is(err, syscall.ECONNREFUSED):
		return ClassConnectRefused, host + " refused the connection: nothing listens on that port, or a firewall rejects it"
	case errors.Is(err, syscall.ETIMEDOUT) && f.phase <= phaseConnect:
		return ClassConnectTimeout, fmt.Sprintf("the connection to %s timed out", host)
	case isAlertOf(err, alertCertificateRequired), f.certificate && refusesNone(err):
		return ClassTLSClientCert, "the server wants a client certificate, which the agent does not send"
	case isAlertOf(err, alertNoApplicationProtocol):
		return ClassHTTP2Only, "the server refuses HTTP/1.1 in the TLS handshake (ALPN): let it accept http/1.1 beside h2"
	case errors.Is(err, errHTTP2) && f.tls:
		return ClassHTTP2Only, "the server answers in HTTP/2 only: let it accept http/1.1 beside h2"
	case errors.Is(err, errHTTP2):
		return ClassH2C, "the server speaks HTTP/2 without TLS (h2c) on this port: let it accept HTTP/1.1"
	case isReset(err):
		return ClassConnectionReset, resetSentence(f.phase)
	case isNetwork(err) || f.phase < phaseTLS:
		return ClassNetworkError, networkSentence(err, host)
	case f.phase == phaseTLS, isAlert(err): // with TLS 1.3 an alert may come after the handshake
		return ClassTLSError, tlsSentence(err)
	case errors.Is(err, errHeadTooLarge):
		return ClassResponseTooLarge, fmt.Sprintf("the response headers exceed %d KiB", maxHeaderBytes>>10)
	default:
		// There was a connection and the network works, so only the answer can be wrong.
		return ClassNotHTTP, "the server's answer is not valid HTTP: is another service on this port?"
	}
}

// Alerts of RFC 8446, section 6.2.
const (
	alertHandshakeFailure      = tls.AlertError(40)
	alertBadCertificate        = tls.AlertError(42)
	alertCertificateRequired   = tls.AlertError(116)
	alertNoApplicationProtocol = tls.AlertError(120)
)

// isAlert reports whether the server ended the connection by a TLS alert.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// isAlertOf reports whether the server ended the connection by this TLS alert. crypto/tls has a
// type of its own for alerts of the other side, but with the same texts.
func isAlertOf(err error, alert tls.AlertError) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error" && op.Err.Error() == alert.Error()
}

// refusesNone reports whether a server that asked for a client certificate ended the handshake
// because it got none. TLS 1.2 has no alert of its own for that: OpenSSL sends handshake_failure
// (RFC 5246, section 7.4.6), Go sends bad_certificate.
func refusesNone(err error) bool {
	return isAlertOf(err, alertHandshakeFailure) || isAlertOf(err, alertBadCertificate)
}

func timeoutClass(p phase) Class {
	switch p {
	case phaseDNS:
		return ClassDNSError
	case phaseConnect:
		return ClassConnectTimeout
	default:
		return ClassTimeout
	}
}

func dnsSentence(err *net.DNSError, host string) string {
	switch {
	case err.IsNotFound:
		return fmt.Sprintf("there is no such host as %s: check the host name of the URL", host)
	case err.IsTimeout:
		return fmt.Sprintf("DNS did not answer for %s", host)
	default:
		return fmt.Sprintf("DNS could not look up %s", host)
	}
}

func classifyCertificate(err *tls.CertificateVerificationError, host string, now time.Time) (Class, string) {
	var (
		wrongHost x509.HostnameError
		invalid   x509.CertificateInvalidError
		unknown   x509.UnknownAuthorityError
	)
	switch {
	case errors.As(err, &wrongHost):
		// The names come from the certificate, so a stranger chooses their number and length.
		return ClassTLSWrongHost, fmt.Sprintf("the certificate is %s, not for %s", certNames(wrongHost.Certificate), host)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		if c := invalid.Cert; now.Before(c.NotBefore) {
			return ClassTLSExpired, fmt.Sprintf("a certificate is not valid before %s; the agent's clock says %s",
				c.NotBefore.UTC().Format(time.RFC3339), now.Format(time.RFC3339))
		}
		return ClassTLSExpired, fmt.Sprintf("a certificate expired on %s; the agent's clock says %s",
			invalid.Cert.NotAfter.UTC().Format(time.RFC3339), now.Format(time.RFC3339))
	case errors.As(err, &unknown):
		return ClassTLSUntrusted, "the certificate is not signed by a known authority: " +
			"it is self-signed, or an intermediate certificate is missing"
	default:
		// Such as one for clients only, or one of an authority that may not sign for this name.
		return ClassTLSUntrusted, "the certificate, or one that signs it, may not be used for this server: let its authority issue another one"
	}
}

// certNames returns the names that a certificate is for, as a text of bounded length.
func certNames(c *x509.Certificate) string {
	names := c.DNSNames
	if len(names) == 0 {
		for _, ip := range c.IPAddresses {
			names = append(names, ip.String())
		}
	}
	if len(names) == 0 {
		return "for no host"
	}
	shown := make([]string, 0, maxCertNames)
	for _, name := range names[:min(len(names), maxCertNames)] {
		shown = append(shown, shorten(name, maxNameLength))
	}
	if rest := len(names) - len(shown); rest > 0 {
		return fmt.Sprintf("for %s and %d more", strings.Join(shown, ", "), rest)
	}
	return "for " + strings.Join(shown, ", ")
}

// isReset reports whether the other side ended the connection.
func isReset(err error) bool {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// isNetwork reports whether the operating system reported the error.
func isNetwork(err error) bool {
	_, ok := errors.AsType[syscall.Errno](err)
	return ok
}

func resetSentence(p phase) string {
	if p <= phaseTLS {
		return "the server closed the connection before the request was sent"
	}
	return "the server closed the connection before it answered"
}

func tlsSentence(err error) string {
	var (
		record tls.RecordHeaderError
		remote *net.OpError
	)
	switch {
	case errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/":
		return "the server speaks plain HTTP on this port, not TLS"
	case errors.As(err, &record):
		return "the server does not speak TLS on this port"
	case errors.As(err, &remote) && remote.Op == "remote error":
		// An alert is one byte, and its text comes from a table of crypto/tls.
		return fmt.Sprintf("the server refused the TLS handshake (%v)", remote.Err)
	default:
		return "the TLS handshake failed: does the server support TLS 1.2 or newer?"
	}
}

func networkSentence(err error, host string) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		// The text comes from a table of package syscall.
		return fmt.Sprintf("the connection to %s failed: %v", host, errno)
	}
	return fmt.Sprintf("the connection to %s failed", host)
}

// redirectsTo returns where a redirect leads, for the sentence, or an empty text. It leaves out the
// path and the query, which may be secrets, and everything else that is the server's own text.
func redirectsTo(asked *url.URL, location string) string {
	to, err := asked.Parse(location)
	switch {
	case location == "" || err != nil || to.Scheme != "http" && to.Scheme != "https" || to.Hostname() == "":
		return ""
	case !strings.EqualFold(to.Hostname(), asked.Hostname()):
		return " to the host " + shorten(Printable(to.Hostname()), maxNameLength)
	case to.Scheme != asked.Scheme:
		return " to " + to.Scheme + "://"
	case to.Port() != asked.Port():
		return " to another port"
	case to.Path == asked.Path+"/":
		return " to the same path with a slash at its end"
	case to.Path+"/" == asked.Path:
		return " to the same path without the slash at its end"
	case to.Path == asked.Path:
		return " to the same path"
	}
	return " to another path of the same host"
}

// classifyStatus returns the class and the sentence of a status that is not 2xx. It uses the number
// only, because the reason phrase is the server's own text.
func classifyStatus(code int, asked *url.URL, location string) (Class, string) {
	switch {
	case code < 100:
		return ClassNotHTTP, fmt.Sprintf("the server answered %03d, which is no HTTP status", code)
	case 300 <= code && code < 400:
		return ClassRedirect, fmt.Sprintf("the server answered %d, a redirect%s, which is not followed: update the endpoint's URL", code, redirectsTo(asked, location))
	case code == http.StatusGone:
		return ClassHTTPStatus, "the server answered 410: it wants no more events"
	default:
		return ClassHTTPStatus, fmt.Sprintf("the server answered %d", code)
	}
}
