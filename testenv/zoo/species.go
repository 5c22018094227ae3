package zoo

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// drip is the pause between two bytes of a slow animal.
const drip = 50 * time.Millisecond

// httpSpecies are the animals that speak HTTP, or should. The first one is tame.
func httpSpecies() []species {
	zeroes := bomb()
	return []species{
		{name: "tame", does: "answers 200", act: says(response(200, "thank you"))},
		{name: "no-content", does: "answers 204", act: says("HTTP/1.1 204 No Content\r\n\r\n")},

		{name: "silent", does: "takes the request and says nothing", act: listens},
		{name: "dribbling-headers", does: "sends a byte of its headers now and then", act: dribbles("HTTP/1.1 200 OK\r\nX-Long: ", "x")},
		{name: "dribbling-body", does: "answers 200 and sends a byte of its body now and then", act: dribbles(chunked(200), "1\r\nx\r\n")},
		{name: "dribbling-error", does: "answers 500, begins its body and sends a byte more now and then", act: dribbles(chunked(500)+"3\r\nxxx\r\n", "1\r\nx\r\n")},
		{name: "endless-body", does: "answers 200 with a body without end", act: repeats(chunked(200), chunk(strings.Repeat("x", 4096)))},
		{name: "endless-error", does: "answers 500 with a body without end", act: repeats(chunked(500), chunk(strings.Repeat("x", 4096)))},
		{name: "gzip-bomb", does: "answers 500 with 10 MB of zeroes in 10 kB of gzip", act: says(gzipped(500, zeroes))},
		{name: "gzip-bomb-ok", does: "answers 200 with the same", act: says(gzipped(200, zeroes))},

		{name: "many-headers", does: "sends 5 MB of headers", act: repeatsTimes("HTTP/1.1 200 OK\r\n", header(1000), 5000)},
		{name: "long-header", does: "sends one header of 5 MB", act: repeatsTimes("HTTP/1.1 200 OK\r\nX-Long: ", strings.Repeat("x", 1000), 5000)},
		{name: "long-status", does: "sends a status line of 5 MB", act: repeatsTimes("HTTP/1.1 200 ", strings.Repeat("x", 1000), 5000)},
		{name: "early-hints", does: "sends 103 Early Hints without end", act: repeats("", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")},
		{name: "continue", does: "sends 100 Continue without end", act: repeats("", "HTTP/1.1 100 Continue\r\n\r\n")},
		{name: "switching", does: "answers 101", act: then(says("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"), listens)},
		{name: "status-000", does: "answers 000", act: says(response(0, ""))},
		{name: "status-999", does: "answers 999", act: says(response(999, ""))},
		{name: "status-20x", does: "answers 20x", act: says("HTTP/1.1 20x OK\r\n\r\n")},
		{name: "status-minus", does: "answers -200", act: says("HTTP/1.1 -200 OK\r\n\r\n")},

		{name: "closes", does: "takes the request and closes the connection", act: says("")},
		{name: "closes-first", does: "closes the connection before anything is said", first: true, act: says("")},
		{name: "resets", does: "takes the request and resets the connection", act: resets("")},
		{name: "resets-headers", does: "resets the connection in the middle of its headers", act: resets("HTTP/1.1 200 OK\r\nX-Cut: ")},
		{name: "resets-body", does: "answers 200 and resets the connection in the middle of its body", act: resets("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\ncut")},
		{name: "resets-error", does: "answers 500 and resets the connection in the middle of its body", act: resets("HTTP/1.1 500 Oops\r\nContent-Length: 1000\r\n\r\ncut")},

		{name: "redirect-metadata", does: "sends the request on to a metadata service", act: says(redirect(302, "http://169.254.169.254/latest/meta-data/"))},
		{name: "redirect-post", does: "sends the POST on to itself", act: says(redirect(307, "/again"))},
		{name: "redirect-nowhere", does: "answers 301 without saying where to", act: says("HTTP/1.1 301 Moved Permanently\r\nContent-Length: 0\r\n\r\n")},

		{name: "reason-phrase", does: "answers 404 with HTML and escape sequences for a reason", act: says("HTTP/1.1 404 <script>alert(1)</script>\x1b[2J\r\nContent-Length: 0\r\n\r\n")},
		{name: "nul", does: "answers 500 with NUL bytes", act: says(response(500, "a\x00b\x00"))},
		{name: "invalid-utf8", does: "answers 500 with bytes that are no UTF-8", act: says(response(500, "caf\xe9 \xff\xfe \xed\xa0\x80"))},
		{name: "ansi", does: "answers 500 with sequences for a terminal", act: says(response(500, "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b0m"))},
		{name: "bidi", does: "answers 500 with text that runs backwards", act: says(response(500, "safe\u202eexe.gpj\u2066\u2069"))},
		{name: "html", does: "answers 500 with a page", act: says(response(500, "<html><body><script>alert(1)</script></body></html>"))},
		{name: "cut-rune", does: "answers 500 with a character across the 4096th byte", act: says(response(500, strings.Repeat("x", 4095)+"€uro"))},

		{name: "retry-huge", does: "answers 429 and wants to be asked again in 3 trillion years", act: says(retryAfter(429, "99999999999999999999"))},
		{name: "retry-30", does: "answers 429 and wants to be asked again in half a minute", act: says(retryAfter(429, "30"))},
		{name: "retry-day", does: "answers 503 and wants to be asked again tomorrow", act: says(retryAfter(503, "86400"))},
		{name: "retry-negative", does: "answers 503 and wants to be asked again five seconds ago", act: says(retryAfter(503, "-5"))},
		{name: "retry-past", does: "answers 503 and wants to be asked again in 1994", act: says(retryAfter(503, "Sun, 06 Nov 1994 08:49:37 GMT"))},
		{name: "retry-nonsense", does: "answers 429 and wants to be asked again on the 99th", act: says(retryAfter(429, "Wed, 99 Foo 2026 99:99:99 GMT"))},
		{name: "retry-fraction", does: "answers 429 and wants to be asked again in 1.5 s", act: says(retryAfter(429, "1.5"))},
		{name: "retry-nan", does: "answers 429 and wants to be asked again in NaN", act: says(retryAfter(429, "NaN"))},
		{name: "retry-400", does: "answers 400 and wants to be asked again in an hour", act: says(retryAfter(400, "3600"))},
		{name: "gone", does: "answers 410", act: says(response(410, "never again"))},
		{name: "unprocessable", does: "answers 422 and says why", act: says(response(422, `{"error":"lead.stage is unknown"}`))},
		{name: "too-large", does: "answers 413 without having read all of the request", first: true, act: then(hears, says(response(413, "too much")), pauses)},

		{name: "http-0.9", does: "answers with a page and no status", act: says("<html>hello</html>")},
		{name: "http-2", does: "speaks HTTP/2 without having been asked", act: says("\x00\x00\x00\x04\x00\x00\x00\x00\x00")},
		{name: "http-3.0", does: "answers as HTTP/3.0", act: says("HTTP/3.0 200 OK\r\nContent-Length: 0\r\n\r\n")},
		{name: "two-lengths", does: "gives two lengths", act: says("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx")},
		{name: "bad-chunks", does: "answers 500 in chunks whose lengths are no numbers", act: says(chunked(500) + "zebra\r\nx\r\n")},
		{name: "unknown-encoding", does: "answers in a transfer encoding that nobody knows", act: says("HTTP/1.1 200 OK\r\nTransfer-Encoding: cow\r\n\r\nmoo")},
		{name: "header-without-colon", does: "sends a header without a colon", act: says("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n")},
		{name: "garbage", does: "answers with bytes that mean nothing", act: says(strings.Repeat("\x00\xff\x1b\r\n", 100))},
		{name: "ssh", does: "is an SSH server", first: true, act: then(says("SSH-2.0-OpenSSH_9.6\r\n"), listens)},
		{name: "smtp", does: "is a mail server", first: true, act: then(says("220 mail.example ESMTP\r\n"), listens)},
	}
}

// says writes text.
func says(text string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, text) } // the client may have gone
}

// listens reads until the other side closes the connection.
func listens(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// pauses gives the other side time to read the answer before the connection is closed.
func pauses(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	listens(c)
}

// then calls the acts in order.
func then(acts ...func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		for _, act := range acts {
			act(c)
		}
	}
}

// repeats writes head, and then text again and again until the other side closes the connection.
func repeats(head, text string) func(net.Conn) {
	many := []byte(strings.Repeat(text, max(1, 16<<10/len(text))))
	return func(c net.Conn) {
		_, err := io.WriteString(c, head)
		for err == nil {
			_, err = c.Write(many)
		}
	}
}

// repeatsTimes writes head, then text n times, and then the end of a response's headers.
func repeatsTimes(head, text string, n int) func(net.Conn) {
	return func(c net.Conn) {
		_, err := io.WriteString(c, head)
		for i := 0; i < n && err == nil; i++ {
			_, err = io.WriteString(c, text)
		}
		_, _ = io.WriteString(c, "\r\n\r\n")
	}
}

// dribbles writes head, and then text again and again with a pause before each.
func dribbles(head, text string) func(net.Conn) {
	return func(c net.Conn) {
		_, err := io.WriteString(c, head)
		for err == nil {
			time.Sleep(drip)
			_, err = io.WriteString(c, text)
		}
	}
}

// resets writes text, waits until it has arrived, and resets the connection.
func resets(text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, text)
		time.Sleep(drip) // a reset discards what the other side has not read yet
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
}

// response returns a complete answer with this status and body.
func response(code int, body string) string {
	return fmt.Sprintf("HTTP/1.1 %03d Status\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s", code, len(body), body)
}

func redirect(code int, location string) string {
	return fmt.Sprintf("HTTP/1.1 %d Elsewhere\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n", code, location)
}

func retryAfter(code int, value string) string {
	return fmt.Sprintf("HTTP/1.1 %d Later\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n", code, value)
}

// chunked returns the head of a response in chunks.
func chunked(code int) string {
	return fmt.Sprintf("HTTP/1.1 %d Status\r\nTransfer-Encoding: chunked\r\n\r\n", code)
}

func chunk(text string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(text), text) }

// header returns a header line of about this many bytes.
func header(bytes int) string { return "X-Long: " + strings.Repeat("x", bytes-10) + "\r\n" }

// bomb returns a compressed body that is a thousand times larger when it is inflated.
func bomb() string {
	var body bytes.Buffer
	w := gzip.NewWriter(&body)
	zeroes := make([]byte, 1<<20)
	for range 10 {
		_, _ = w.Write(zeroes) // a bytes.Buffer takes everything
	}
	_ = w.Close()
	return body.String()
}

func gzipped(code int, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d Status\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", code, len(body), body)
}
