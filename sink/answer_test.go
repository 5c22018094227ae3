package sink

import (
	"errors"
	"io"
	"net/http/httputil"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// read reads the answer at the beginning of text. The bytes come one by one, or all together.
func readAnswer(text string, single bool) (h head, content, rest string, ended bool, err error) {
	var from io.Reader = strings.NewReader(text)
	if single {
		from = iotest.OneByteReader(from)
	}
	in := newIncoming(from)
	defer in.free()
	a, err := receive(in)
	if err != nil {
		return head{}, "", "", false, err
	}
	body, ended := in.body(&a.head, true)
	unread, _ := io.ReadAll(from)
	return a.head, string(body), string(in.unused()) + string(unread), ended, nil
}

func TestAnswer_ReadsWhatServersSend(t *testing.T) {
	const next = "HTTP/1.1 500 next\r\n\r\n"
	for name, c := range map[string]struct {
		text    string
		code    int
		content string
		ended   bool // so that another answer may follow
		last    bool
	}{
		"no body":              {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", true, false},
		"a length":             {"HTTP/1.1 200 OK\r\ncontent-LENGTH:\t5 \r\n\r\nhello", 200, "hello", true, false},
		"no reason":            {"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n", 404, "", true, false},
		"a reason of any kind": {"HTTP/1.1 404 \x1b[2J\xff\r\nContent-Length: 0\r\n\r\n", 404, "", true, false},
		"bare line feeds":      {"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 200, "ok", true, false},
		"the length twice":     {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", 200, "ok", true, false},
		"chunks":               {"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n00A; x=\"y\"\r\n0123456789\r\n0\r\n\r\n", 200, "abc0123456789", true, false},
		"a trailer":            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\nZ: \r\n\r\n", 200, "a", true, false},
		"early hints":          {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n", 204, "", true, false},
		"no content":           {"HTTP/1.1 204 No Content\r\n\r\n", 204, "", true, false},
		"not modified":         {"HTTP/1.1 304 No\r\nContent-Length: 10\r\n\r\n", 304, "", true, false},
		"it closes":            {"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n", 200, "", true, true},
		"HTTP/1.0":             {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok", true, true},
		"HTTP/1.0 that keeps":  {"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok", 200, "ok", true, false},
		"HTTP/1.2":             {"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", true, false},
		"HTTP/3.0 by text":     {"HTTP/3.0 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", true, false},
		"a value that goes on": {"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n", 200, "", true, false},
		"other alphabets":      {"HTTP/1.1 200 OK\r\nX: \xe4\r\nContent-Length: 0\r\n\r\n", 200, "", true, false},
		// An answer that could be read in two ways is the last on its connection.
		"two lengths, one in chunks": {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", 200, "ab", true, true},
		"chunks of HTTP/1.0":         {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n", 200, "", false, true},
		"no content, but some":       {"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n", 204, "", true, true},
		"no content in chunks":       {"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", 204, "", true, true},
		"another protocol":           {"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nContent-Length: 0\r\n\r\n", 101, "", true, true},
		// A malformed body does not change the status.
		"chunks of no size":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 200, "", false, false},
		"a chunk that is too long": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n", 200, "a", false, false},
		"a chunk without CR":       {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\na\n0\n\n", 200, "", false, false},
		"a size that overflows":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n", 200, "", false, false},
		"a negative size":          {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 200, "", false, false},
		"an extension with a CR":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;\rx\r\na\r\n0\r\n\r\n", 200, "", false, false},
		"a malformed trailer":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx\r\n\r\n", 200, "", false, false},
		"a trailer without end":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X: y\r\n", maxFramingBytes/6), 200, "", false, false},
		"a size without end":       {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("x", 2*maxFramingBytes), 200, "", false, false},
	} {
		for _, single := range []bool{false, true} {
			follows := next
			if !c.ended {
				follows = ""
			}
			h, content, rest, ended, err := readAnswer(c.text+follows, single)
			if err != nil || h.code != c.code || content != c.content || ended != c.ended || h.last != c.last && c.ended {
				t.Errorf("%s: %+v, content %q, ended %v, error %v", name, h, content, ended, err)
			}
			if c.ended && rest != next {
				t.Errorf("%s: %q is left, want the next answer", name, rest)
			}
		}
	}
}

// A body without a length ends with its connection, and a long one is not read.
func TestAnswer_ReadsFourKiBOfABody(t *testing.T) {
	long := strings.Repeat("x", maxBodyBytes+1)
	for text, want := range map[string]string{
		"HTTP/1.1 500 No\r\n\r\nhello":                                              "hello",
		"HTTP/1.1 500 No\r\n\r\n" + long:                                            long[1:],
		"HTTP/1.1 500 No\r\nContent-Length: 10\r\n\r\nhello":                        "hello",
		"HTTP/1.1 500 No\r\nContent-Length: 4097\r\n\r\n" + long:                    long[1:],
		"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n1001\r\n" + long:      long[1:],
		"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n1001\r\nhe":           "he",
		"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\nh": "h",
	} {
		_, content, _, ended, err := readAnswer(text, false)
		if err != nil || ended || content != want {
			t.Errorf("%.80q: %.20q of %d bytes, ended %v, error %v", text, content, len(content), ended, err)
		}
	}
}

func TestAnswer_RefusesWhatIsNotHTTP(t *testing.T) {
	for text, want := range map[string]error{
		"SSH-2.0-x":             errNoStatusLine, // without an end of the line
		"\r\nHTTP/1.1 200\r\n":  errNoStatusLine,
		"HTTP/2 200 OK\r\n\r\n": errNoStatusLine, "HTTP/1.x 200 OK\r\n\r\n": errNoStatusLine, "HTTP/x.1 200 OK\r\n\r\n": errNoStatusLine, "HTTP/1.1\t200 OK\r\n\r\n": errNoStatusLine,
		"http/1.1 200 OK\r\n\r\n": errNoStatusLine, "ICY 200 OK\r\n\r\n": errNoStatusLine, "HTTP/1.1 20\r\n\r\n": errNoStatusLine,
		"HTTP/1.1 2000\r\n\r\n": errMalformed, "HTTP/1.1 2x0 OK\r\n\r\n": errMalformed, "HTTP/1.1 -20 OK\r\n\r\n": errMalformed,
		"HTTP/1.1 200 OK\r\n X: y\r\n\r\n": errMalformed, "HTTP/1.1 200 OK\r\nX : y\r\n\r\n": errMalformed, "HTTP/1.1 200 OK\r\n: y\r\n\r\n": errMalformed,
		"HTTP/1.1 200 OK\r\nX\r\n\r\n": errMalformed, "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n": errMalformed, "HTTP/1.1 200 OK\r\nX: a\x00\r\n\r\n": errMalformed,
		"HTTP/1.1 200 OK\r\nX\xe4: a\r\n\r\n":                                                 errMalformed,
		"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n":                                         errMalformed,
		"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n":                                       errMalformed,
		"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n":                                     errMalformed,
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 01\r\n\r\n1":                 nil,
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n":                   errMalformed,
		"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000000000\r\n\r\n":                      errMalformed,
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n 1\r\n\r\n":                                  errMalformed,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n chunked\r\n\r\n":                           errMalformed,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n":                         errMalformed,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n": errMalformed,
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxHeaderBytes) + "\r\n\r\n":           errHeadTooLarge,
		strings.Repeat("HTTP/1.1 103 Early\r\n\r\n", maxHeaderBytes/22+2):                     errHeadTooLarge,
		"\x00\x00\x12\x04\x00\x00\x00\x00\x00settings":                                        errHTTP2,
		"\x00\x00\x08\x07\x00\x00\x00\x00\x00goaway..":                                        errHTTP2,
		"\x00\x00\x08\x06\x00\x00\x00\x00\x00ping....":                                        errNoStatusLine,
		"":                            io.EOF,
		"HTTP/1.1 200 OK\r\nX: y\r\n": io.ErrUnexpectedEOF,
		"HT":                          io.ErrUnexpectedEOF,
	} {
		for _, single := range []bool{false, true} {
			if _, _, _, _, err := readAnswer(text, single); !errors.Is(err, want) {
				t.Errorf("%.80q: %v, want %v", text, err, want)
			}
		}
	}
}

func TestAnswer_KnowsTheFieldsThatItNeeds(t *testing.T) {
	h, _, _, _, err := readAnswer("HTTP/1.1 503 No\r\nretry-after: 7\r\nRetry-After: 8\r\nLOCATION: /x \r\nLocation: /y\r\nKeep-Alive: max=3, Timeout=5\r\nContent-Length: 0\r\n\r\n", false)
	if err != nil || h.retryAfter.seconds != 7*time.Second || h.location != "/x" || h.keepFor != 5*time.Second {
		t.Errorf("%+v, %v", h, err)
	}
	for value, want := range map[string]time.Duration{
		"timeout=5": 5 * time.Second, ` timeout = "60" `: time.Minute, "max=5": -1, "": -1, "timeout": -1, "timeout=-1": -1, "timeout=1.5": -1,
		"timeout=0": 0, "timeout=99999999": time.Hour, "x, timeout=2, timeout=3": 2 * time.Second,
	} {
		if got := keepAliveTimeout([]byte(value)); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

// For any input, reading ends without a panic and uses no more bytes than there are. Whether the
// bytes come one by one or together makes no difference for where an answer ends.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1", "HTTP/1.0 500 No\r\n\r\nbody", "HTTP/1.1 100 C\n\nHTTP/1.1 204 N\n\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5\r\n\r\n2;x=y\r\nok\r\n0\r\nT: t\r\n\r\n", "\x00\x00\x12\x04\x00\x00\x00\x00\x00", "SSH-2.0",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, content, rest, ended, err := readAnswer(text, false)
		h1, content1, rest1, ended1, err1 := readAnswer(text, true)
		if h != h1 || content != content1 || ended != ended1 || !errors.Is(err1, err) || ended && rest != rest1 {
			t.Fatalf("together %+v %q %q %v %v, one by one %+v %q %q %v %v", h, content, rest, ended, err, h1, content1, rest1, ended1, err1)
		}
		if len(content) > maxBodyBytes || len(rest) > len(text) || ended && !strings.HasSuffix(text, rest) {
			t.Fatalf("content of %d bytes, %q left of %q", len(content), rest, text)
		}
	})
}

// If both this package and the standard library read a chunked body to its end, they read the same
// content.
func FuzzChunks(f *testing.F) {
	for _, seed := range []string{"0\r\n\r\n", "1\r\na\r\n0\r\n\r\n", "00a;b=c\r\n0123456789\r\n0\r\nX: y\r\n\r\n", "1\na\n0\n\n", "-1\r\n", "fffffffffffffffff\r\n", "1 ;x\r\na\r\n0\r\n\r\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		in := newIncoming(strings.NewReader(text))
		defer in.free()
		content, ended := in.body(&head{chunked: true}, true)
		if !ended {
			return
		}
		want, err := io.ReadAll(httputil.NewChunkedReader(strings.NewReader(text)))
		if err != nil || string(want) != string(content) {
			t.Fatalf("%q: %q, want %q, %v", text, content, want, err)
		}
	})
}
