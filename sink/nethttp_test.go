//go:build nethttp

package sink

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv/zoo"
)

// This file compares the client with net/http, and nothing else needs net/http. make differences
// lets both read generated answers. It fails if they differ in a way that no entry of differences
// explains.

// generated is how many answers are compared.
const generated = 100_000

// reading is how an attempt reads an answer.
type reading struct {
	class   Class
	code    int
	content string
	kept    bool // another request may follow on the connection
}

// difference is a way in which net/http reads an answer differently.
type difference struct {
	name, why string
	// is reports whether an answer is of this kind.
	is func(text string, ours, theirs reading) bool
}

// differences explains why the two differ. The first entry that matches counts.
var differences = []difference{
	{"a head that is cut off", "the server closed the connection before it answered, which says more than that what came is no HTTP", func(_ string, ours, theirs reading) bool {
		return ours.class == ClassConnectionReset && theirs.class == ClassNotHTTP
	}},
	{"a status line with other blanks", "RFC 9112, section 4, has one", func(text string, ours, theirs reading) bool {
		return ours.class == ClassNotHTTP && odd(text, `HTTP/1\.\d  `, `HTTP/1\.\d \d\d\d\t`)
	}},
	{"a blank in the name of a field, or behind it", "RFC 9112, section 5.1: it is how lengths are hidden", func(text string, ours, theirs reading) bool {
		return ours.class == ClassNotHTTP && odd(text, `\n[\w-]+ [\w -]*:`)
	}},
	{"a length that goes on in the next line", "RFC 9112, section 5.2: only old senders fold, and none needs to here", func(text string, ours, theirs reading) bool {
		return ours.class == ClassNotHTTP && odd(text, `(?i)\n(content-length|transfer-encoding):[^\n]*\n[ \t]`)
	}},
	{"the same length with zeros before it", "it is the same number", func(text string, ours, theirs reading) bool {
		return theirs.class == ClassNotHTTP && odd(text, `(?i)content-length: *0\d`)
	}},
	{"chunks of HTTP/1.0 beside a length", "RFC 9112, section 6.1: the framing is faulty, so all that comes is shown, and the connection ends", func(text string, ours, theirs reading) bool {
		return ours.code == theirs.code && !ours.kept && odd(text, `HTTP/1\.0 [^\n]*\n((?s).*)(?i)transfer-encoding`)
	}},
	{"a chunk extension with control characters", "the body ends there; its status is what counts", func(text string, ours, theirs reading) bool {
		return ours.code == theirs.code && !ours.kept && odd(text, `;[^\n]*[\x00\r][^\n]*\n`)
	}},
	{"a chunk of more than 2^60 bytes", "no server has one", func(text string, ours, theirs reading) bool {
		return odd(text, `\n[0-9a-fA-F]{16}`)
	}},
	{"bytes behind the answer", "they would be taken for the next one, which net/http drops later, if it sees them in time", func(text string, ours, theirs reading) bool {
		theirs.kept = false
		return ours == theirs
	}},
}

// odd reports whether the text matches one of the patterns.
func odd(text string, patterns ...string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return regexp.MustCompile(pattern).MatchString(text) })
}

func TestDifference_OfNetHTTPIsOneThatIsMeant(t *testing.T) {
	log.SetOutput(io.Discard) // net/http says what it did not ask for
	found := make([]int, len(differences))
	random := rand.New(rand.NewPCG(1, 2))
	unexplained := 0
	for range generated {
		text := generate(random)
		step := []int{1 << 20, 1, 7, 100}[random.IntN(4)]
		ours, theirs := readOurs(t, text, step), readTheirs(text, step)
		if ours == theirs {
			continue
		}
		explained := false
		for i, d := range differences {
			if explained = d.is(text, ours, theirs); explained {
				found[i]++
				break
			}
		}
		if explained {
			continue
		}
		if unexplained++; unexplained < 20 {
			t.Errorf("%q, in pieces of %d:\nours   %+v\ntheirs %+v", text, step, ours, theirs)
		}
	}
	for i, d := range differences {
		t.Logf("%6d  %s: %s", found[i], d.name, d.why)
		if found[i] == 0 {
			t.Errorf("%s: there is no such difference", d.name)
		}
	}
}

// The zoo is a collection of servers that do what customers' servers do.
func TestDifference_OfNetHTTPInTheZooIsOneThatIsMeant(t *testing.T) {
	meant := map[string]string{
		"h2c":            "its frames say what it speaks, which net/http does not look at",
		"http-2":         "its frames say what it speaks, which net/http does not look at",
		"one-connection": "it refuses the second of two that come together, whichever that is",
		"name-rebinding": "its name leads elsewhere the second time",
	}
	z := zoo.Start(t)
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, z.DNS.String())
	}}
	const timeout = 2 * time.Second
	var all sync.WaitGroup
	for _, a := range z.Animals {
		all.Go(func() {
			w := newNamedWebhook(t, resolver, timeout)
			target := w.Target(a.URL, secret.New(sentinelSecret))
			if target.Err() != nil {
				return // it is never sent to
			}
			result := w.Attempt(t.Context(), Request{Target: target, EventID: "evt_1", Body: []byte(testBody)})
			w.Close() // one animal takes one connection at a time
			ours := reading{class: result.Class, code: result.Code}
			if theirs := w.theirs(t, a.URL, timeout); ours != theirs && meant[a.Name] == "" {
				t.Errorf("%s: ours %+v, theirs %+v", a.Name, ours, theirs)
			}
		})
	}
	all.Wait()
	t.Logf("%d animals", len(z.Animals))
}

// theirs is an attempt in the way in which this package made it by net/http.
func (w *Webhook) theirs(t *testing.T, url string, timeout time.Duration) reading {
	transport := &http.Transport{DialContext: w.client.dial, TLSClientConfig: w.client.tls.Clone(), DisableCompression: true, MaxResponseHeaderBytes: maxHeaderBytes}
	defer transport.CloseIdleConnections()
	seen := new(progress)
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), progressKey{}, seen), timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		TLSHandshakeStart: func() { seen.reach(phaseTLS) },
		GotConn:           func(httptrace.GotConnInfo) { seen.reach(phaseSend) },
		WroteRequest:      func(httptrace.WroteRequestInfo) { seen.reach(phaseHeaders) },
	}), http.MethodPost, url, strings.NewReader(testBody))
	if err != nil {
		t.Error(err)
		return reading{}
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return reading{class: theirClass(err, failure{deadline: ctx.Err() != nil, phase: phase(seen.phase.Load()), blocked: seen.blocked.Load()})}
	}
	defer response.Body.Close()
	r := reading{code: response.StatusCode}
	if !succeeds(r.code) {
		r.class, _ = classifyStatus(r.code, request.URL, "")
	}
	return r
}

// theirClass returns the class of an error of net/http. Two of these errors have no type.
func theirClass(err error, f failure) Class {
	switch {
	case strings.Contains(err.Error(), "server response headers exceeded"):
		return ClassResponseTooLarge
	case strings.Contains(err.Error(), "server closed idle connection"):
		return ClassConnectionReset
	}
	class, _ := classify(err, f)
	return class
}

// readOurs reads the answer with this client.
func readOurs(t *testing.T, text string, step int) reading {
	below := newWire(newScripted(text, step), false)
	c := newConn(below, below, origin{}, time.Now().Add(time.Hour))
	a, keep, err := c.exchange(t.Context(), time.Now().Add(time.Hour), &message{first: []byte("POST")}, new(progress))
	if err != nil {
		class, _ := classify(err, failure{phase: phaseHeaders})
		return reading{class: class}
	}
	r := resultOf(&a, &url.URL{}, time.Time{})
	return reading{r.Class, r.Code, string(a.excerpt), keep}
}

// readTheirs reads the answer with net/http, as this package did before it had a client of its own.
func readTheirs(text string, step int) (r reading) {
	conn := newScripted(text, step)
	transport := &http.Transport{
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
	defer transport.CloseIdleConnections()
	put := make(chan error, 1) // so that the transport does not wait
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{PutIdleConn: func(err error) { put <- err }})
	request, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://hooks.example.com/", strings.NewReader("{}"))
	response, err := transport.RoundTrip(request)
	if err != nil {
		return reading{class: theirClass(err, failure{phase: phaseHeaders})}
	}
	defer response.Body.Close()
	r.code = response.StatusCode
	if !succeeds(r.code) {
		r.class, _ = classifyStatus(r.code, &url.URL{}, "")
	}
	if r.code != http.StatusSwitchingProtocols {
		content := make([]byte, maxBodyBytes)
		n, _ := io.ReadFull(response.Body, content)
		if _, err := response.Body.Read(make([]byte, 1)); err == io.EOF { // lets the transport see the end
			select {
			case err := <-put:
				r.kept = err == nil
			case <-conn.closed:
				r.kept = len(put) > 0 && <-put == nil
			}
		}
		if !succeeds(r.code) {
			r.content = string(content[:n])
		}
	}
	return r
}

// scripted is a connection. Its other side answers the first request with a text, and then ends.
type scripted struct {
	net.Conn // for the methods that nobody calls
	text     *bytes.Reader
	step     int           // the most bytes of one read
	asked    chan struct{} // closed by the first write
	closed   chan struct{}
}

func newScripted(text string, step int) *scripted {
	return &scripted{text: bytes.NewReader([]byte(text)), step: step, asked: make(chan struct{}), closed: make(chan struct{})}
}

func (s *scripted) Read(b []byte) (int, error) {
	select {
	case <-s.asked:
		return s.text.Read(b[:min(len(b), s.step)])
	case <-s.closed:
		return 0, net.ErrClosed
	}
}

func (s *scripted) Write(b []byte) (int, error) {
	closeOnce(s.asked)
	return len(b), nil
}

func (s *scripted) Close() error {
	closeOnce(s.closed)
	return nil
}

// closeOnce closes a channel once, even if several goroutines call it in turn.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

func (s *scripted) SetDeadline(time.Time) error      { return nil }
func (s *scripted) SetReadDeadline(time.Time) error  { return nil }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }

// generate returns an answer. Mostly it is a sound one with something odd in it; sometimes random
// bytes are changed.
func generate(random *rand.Rand) string {
	pick := func(words ...string) string { return words[random.IntN(len(words))] }
	rarely := func(odd ...string) string {
		if random.IntN(6) > 0 {
			return ""
		}
		return pick(odd...)
	}
	rarelyOr := func(usual string, odd ...string) string { return cmp.Or(rarely(odd...), usual) }
	end := pick("\r\n", "\r\n", "\r\n", "\n")
	var b strings.Builder
	b.WriteString(rarely("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early\r\nLink: </x>\r\n\r\n", "HTTP/1.1 102\r\n\r\n", "\r\n"))
	b.WriteString(pick("HTTP/1.1 ", "HTTP/1.1 ", "HTTP/1.1 ", "HTTP/1.0 ", rarelyOr("HTTP/1.1 ", "HTTP/1.2 ", "HTTP/2.0 ", "HTTP/2 ", "HTTP/1.1  ", "http/1.1 ", "HTTP/11 ", "HTTP/1.1\t")))
	b.WriteString(pick("200", "200", "200", "200", "201", "204", "205", "301", "304", "400", "404", "410", "429", "500", "503", rarelyOr("202", "101", "000", "099", "999", "20", "2000", "2x0", "-20", "")))
	b.WriteString(pick(" OK", " OK", "", " ", "\tOK", " \x01", " \xff", "OK"))
	b.WriteString(end)
	for range random.IntN(4) {
		b.WriteString(pick("X: y", "X:y", "X: ", "X:", "X", ": y", "X : y", " X: y", "X: \x00", "X: \xe4", "X\xe4: y", "X: a\rb", "X: y\r\n z", "X@: y", "Content-Type: text/plain",
			"Connection: close", "Connection: keep-alive", "Connection: x, close", "CONNECTION: Close", "Connection: upgrade", "Keep-Alive: timeout=5", "Retry-After: 7", "Upgrade: x", "Trailer: T",
			"Content-Length: 1", "Content-Length: 5", "content-length:5", "Transfer-Encoding: chunked"))
		b.WriteString(end)
	}
	body := pick("hello", "hello", "", "h", strings.Repeat("long ", 900), "HTTP/1.1 200 OK\r\n\r\n")
	switch random.IntN(8) {
	case 0, 1, 2:
		b.WriteString(pick("Content-Length: ", "Content-Length:", "CONTENT-LENGTH: "))
		if length := pick("", "", "", "+", "-", "0", "5, ", "x", " ", "9999999999999999999"); length == " " {
			b.WriteString(end)
		} else {
			b.WriteString(length)
			b.WriteString(strconv.Itoa(len(body)))
			b.WriteString(end)
		}
		b.WriteString(end)
		b.WriteString(body)
	case 3, 4, 5:
		b.WriteString("Transfer-Encoding: " + pick("chunked", "chunked", "chunked", "Chunked", "gzip, chunked", "identity", "chunked, chunked", "", " chunked "))
		b.WriteString(end + end)
		line := pick("\r\n", "\r\n", "\r\n", "\r\n", "\n")
		for range 1 + random.IntN(2) {
			b.WriteString(pick("", "", "", "0", "00000", "0x", "+", " ", "fffffffffffffff"))
			b.WriteString(strconv.FormatInt(int64(len(body)), 16))
			b.WriteString(pick("", "", "", ";x", ";x=y", " ", " ;x", ";\"\r", ";\x00", "x") + line)
			b.WriteString(body + pick("\r\n", "\r\n", "\r\n", line, "", "x\r\n"))
		}
		b.WriteString(pick("0\r\n", "0\r\n", "0\r\n", "00\r\n", "0;x\r\n", "0\n", "") + rarely("T: t\r\n", "T\r\n", "T : t\r\n", "X: \x00\r\n", "T: t\n") + pick("\r\n", "\r\n", "\r\n", line, ""))
	default:
		b.WriteString(end)
		b.WriteString(body)
	}
	b.WriteString(rarely("x", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "\r\n", "\n"))
	text := []byte(b.String())
	if random.IntN(5) == 0 && len(text) > 0 {
		switch at := random.IntN(len(text)); random.IntN(3) {
		case 0:
			text[at] = byte(random.IntN(256))
		case 1:
			text = text[:at]
		default:
			text = append(text[:at], text[min(len(text), at+1+random.IntN(3)):]...)
		}
	}
	return string(text)
}
