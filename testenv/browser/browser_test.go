//go:build browser

package browser

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
)

// diesEnv makes the test binary a process that starts a browser and is killed.
const diesEnv = "QUINTAGO_BROWSER_DIES"

func TestMain(m *testing.M) {
	if os.Getenv(diesEnv) != "" {
		dies()
	}
	testenv.Main(m, testenv.Options{})
}

// sound is a page without a fault. Each planted fault changes one thing in it.
const sound = `<!doctype html>
<html lang="en">
<head>
<title>A form</title>
<link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width">
<link rel="stylesheet" href="/style.css">
</head>
<body>
<main>
<h1>A form</h1>
<p>Fill in the form.</p>
<form action="/sent" method="get">
<p><label for="name">Your name</label> <input id="name" name="name" autocomplete="off"></p>
<p><label for="size">Size</label> <select id="size" name="size"><option value="s">Small</option><option value="l">Large</option></select></p>
<p><button>Send</button></p>
</form>
<details><summary>More</summary><p id="more">What was hidden</p></details>
<p><a href="/sent">Another page</a></p>
</main>
</body>
</html>`

const style = `:root { color-scheme: light dark; }
body { font: 16px sans-serif; background: Canvas; color: CanvasText; }
button, summary, a, input, select { min-height: 28px; }
a { display: inline-block; }
@media (prefers-color-scheme: dark) { body { background: #000; color: #fff; } a { color: #9cf; } }
:focus-visible { outline: 3px solid Highlight; }
`

const policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; form-action 'self'; require-trusted-types-for 'script'; trusted-types 'none'"

// serve returns the URL of a server with one page.
func serve(t *testing.T, page, csp string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if csp != "" {
			w.Header().Set("Content-Security-Policy", csp)
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		switch r.URL.Path {
		case "/style.css":
			w.Header().Set("Content-Type", "text/css")
			fmt.Fprint(w, style)
		case "/sent":
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprintf(w, `<!doctype html><html lang="en"><title>Sent</title><link rel="icon" href="data:,"><main><h1>Sent by %s in %s</h1></main></html>`,
				r.FormValue("name"), r.Header.Get("Accept-Language"))
		case "/missing":
			http.NotFound(w, r)
		default:
			fmt.Fprint(w, page)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// plant returns the sound page with one change.
func plant(t *testing.T, old, replacement string) string {
	t.Helper()
	if !strings.Contains(sound, old) {
		t.Fatalf("the page has no %q", old)
	}
	return strings.Replace(sound, old, replacement, 1)
}

func TestBrowser_FindsNothingOnASoundPage(t *testing.T) {
	t.Parallel()
	p := New(t)
	p.Open(serve(t, sound, policy))
	for _, width := range []int64{1280, 360} {
		p.Viewport(width, 800)
		for _, scheme := range []string{"light", "dark"} {
			p.SetScheme(scheme)
			p.Axe()
			p.Layout()
		}
	}
}

// A page with many faults takes as long as one with a single fault, and a page for each would take a
// minute.
func TestBrowser_FindsWhatAPageLacks(t *testing.T) {
	t.Parallel()
	planted := sound
	var wants []string
	for _, fault := range []struct{ old, replacement, want string }{
		{`<label for="name">Your name</label>`, `Your name`, "axe label: #name"},
		{` lang="en"`, ``, "axe html-has-lang: html"},
		{`<title>A form</title>`, ``, "axe document-title: html"},
		{`<button>Send</button>`, `<button></button>`, "axe button-name: "},
		{`<p>Fill in the form.</p>`, `<h4>Fill in</h4>`, "axe heading-order: h4"},
		{`</main>`, `<p><button class="tiny">x</button><button class="tiny">y</button></p><style>.tiny { all: unset; width: 9px; height: 9px; display: inline-block; font-size: 9px }</style></main>`, "axe target-size: "},
	} {
		if !strings.Contains(planted, fault.old) {
			t.Fatalf("the page has no %q", fault.old)
		}
		planted = strings.Replace(planted, fault.old, fault.replacement, 1)
		wants = append(wants, fault.want)
	}
	p := New(t)
	p.Open(serve(t, planted, ""))
	found := strings.Join(p.violations(everyRule), "\n")
	for _, want := range wants {
		if !strings.Contains(found, want) {
			t.Errorf("it did not find %q in\n%s", want, found)
		}
	}
}

func TestBrowser_FindsAContrastThatIsLowInTheDarkAlone(t *testing.T) {
	t.Parallel()
	p := New(t)
	p.Open(serve(t, plant(t, `<p>Fill`, `<style>@media (prefers-color-scheme: dark) { .dim { color: #333 } }</style><p class="dim">Fill`), ""))
	if found := p.violations(colourRules); len(found) > 0 {
		t.Errorf("in the light: %q", found)
	}
	p.SetScheme("dark")
	if found := p.violations(colourRules); len(found) != 1 || !strings.Contains(found[0], "axe color-contrast: .dim") {
		t.Errorf("in the dark: %q", found)
	}
}

func TestBrowser_FindsWhatAPageDoesWrong(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		csp   string
		added string
		wants []string
	}{
		{"", `<img src="data:," alt="" onerror="alert('ran')">
			<script>console.error('it is', 'wrong')</script>
			<script>Promise.reject(new Error('rejected'))</script>
			<script>throw new Error('thrown')</script>
			<img src="/missing" alt="">
			<img src="https://example.com/x.png" alt="">`,
			[]string{`dialog (alert): "ran"`, `"it is" "wrong"`, "Error: rejected", "Error: thrown", "404", "ERR_NAME_NOT_RESOLVED"}},
		{strings.Replace(policy, "script-src 'self'", "script-src 'nonce-n'", 1), `<img src="data:," alt="" onerror="alert('ran')">
			<p style="color: red">Red</p>
			<p id="x"></p><script nonce="n">x.innerHTML = '<b>b</b>'</script>`,
			[]string{"script-src-attr forbids inline", "style-src-attr forbids inline", "TrustedHTML"}},
	} {
		p := New(t)
		p.Open(serve(t, plant(t, "</main>", test.added+"</main>"), test.csp))
		var found []string
		testenv.Eventually(t, Patience, func() error {
			found = append(found, p.Faults()...)
			for _, want := range test.wants {
				if !strings.Contains(strings.Join(found, "\n"), want) {
					return fmt.Errorf("it did not find %q in\n%s", want, strings.Join(found, "\n"))
				}
			}
			return nil
		})
	}
}

func TestBrowser_FailsATestForAFaultUnlessItIsExpected(t *testing.T) {
	t.Parallel()
	p := New(t)
	p.Open(serve(t, plant(t, "</main>", `<script>console.error('right')</script><script>console.error('wrong')</script></main>`), ""))
	p.ExpectFault("right")
	p.ExpectFault("never comes")
	if found := p.Faults(); len(found) != 1 || !strings.Contains(found[0], "wrong") {
		t.Errorf("found %q", found)
	}
	if missing := p.watch.missing(); len(missing) != 1 || missing[0] != "never comes" {
		t.Errorf("%q are missing", missing)
	}
	p.watch.expected = nil
}

func TestBrowser_FindsWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	p := New(t)
	p.Viewport(360, 800)
	p.Open(serve(t, plant(t, "</main>", `
		<div id="wide" style="width: 500px">Wide</div>
		<p id="word">`+strings.Repeat("x", 400)+`</p>
		<p id="beside" style="overflow: hidden; white-space: nowrap; width: 60px">A long text</p>
		<p id="below" style="overflow: hidden; height: 10px">A text</p>
		<div id="outer" style="overflow: hidden; width: 60px"><p style="width: 200px">A rather long text</p></div>
		<p id="dots" style="overflow: hidden; white-space: nowrap; width: 60px; text-overflow: ellipsis">A long text</p>
		<p id="titled" title="A long text" style="overflow: hidden; white-space: nowrap; width: 60px; text-overflow: ellipsis">A long text</p>
		<div style="overflow-x: auto"><div id="table" style="width: 900px">A wide text</div></div></main>`), ""))
	found := strings.Join(p.layoutFaults(), "\n")
	for _, want := range []string{"the page scrolls sideways: ", "by <div#wide>", "<p#word>", "the text is cut: <p#beside>", "the text is cut below: <p#below>", "the text is cut by <div#outer>", "the text is cut: <p#dots>"} {
		if !strings.Contains(found, want) {
			t.Errorf("it did not find %q in\n%s", want, found)
		}
	}
	for _, right := range []string{"#titled", "#table"} {
		if strings.Contains(found, right) {
			t.Errorf("it takes %s for wrong:\n%s", right, found)
		}
	}
}

func TestBrowser_ClicksFillsAndReads(t *testing.T) {
	t.Parallel()
	p := New(t)
	p.SetLanguage("pt")
	p.Open(serve(t, sound, policy))
	if n := p.Count("#more"); n != 0 {
		t.Error("it sees what is hidden")
	}
	p.Click("text=More")
	if got := p.Text("#more"); got != "What was hidden" {
		t.Errorf("it reads %q", got)
	}
	p.Fill("#name", "Ana")
	p.Fill("#name", "Rui")
	p.Fill("#size", "l")
	if got := p.Text("#size"); got != "l" {
		t.Errorf("the list has %q", got)
	}
	p.Click("text=Send")
	p.WaitFor("text=Sent by Rui in pt")
	if !strings.HasSuffix(p.URL(), "/sent?name=Rui&size=l") {
		t.Errorf("the address is %s", p.URL())
	}
	p.Back()
	p.WaitFor("text=Fill in the form.")
	p.WaitGone("text=Sent")
	if got := p.Attribute("text=Another page", "href"); got != "/sent" {
		t.Errorf("the link leads to %q", got)
	}
}

func TestBrowser_WorksByTheKeyboard(t *testing.T) {
	t.Parallel()
	p := New(t)
	p.Open(serve(t, sound, policy))
	p.TabTo("#name")
	p.Press("Rui", "Tab", "ArrowDown", "Shift+Tab", "End", "!")
	p.TabTo("text=Send")
	p.Press("Enter")
	p.WaitFor("text=Sent by Rui!")
	if !strings.HasSuffix(p.URL(), "size=l") {
		t.Errorf("the address is %s", p.URL())
	}
}

func TestBrowser_SeesTheFocusThatIsInvisible(t *testing.T) {
	t.Parallel()
	p := New(t)
	p.Open(serve(t, plant(t, "</head>", "<style>#name:focus { outline: none }</style></head>"), ""))
	p.Press("Tab")
	at, err := look[struct{ Error string }](p, "focused", quote("#name"))
	if err != nil || !strings.Contains(at.Error, "does not show") {
		t.Errorf("it found %q, %v", at.Error, err)
	}
}

func TestBrowser_RefusesToClickWhatIsCovered(t *testing.T) {
	t.Parallel()
	p := New(t)
	p.Open(serve(t, plant(t, "</main>", `</main><div style="position: fixed; inset: 0"></div>`), ""))
	if _, err := p.spot("clickable", "text=Send"); err == nil || !strings.Contains(err.Error(), "is covered by <div>") {
		t.Errorf("it found %v", err)
	}
}

func TestBrowser_DrivesAFrameOfAnotherOrigin(t *testing.T) {
	t.Parallel()
	inner := strings.Replace(serve(t, sound, policy), "127.0.0.1", "inner.test", 1)
	outer := strings.Replace(serve(t, plant(t, "</main>", `<iframe title="the form" width="600" height="300" src="`+inner+`"></iframe></main>`), ""), "127.0.0.1", "outer.test", 1)
	p := New(t)
	p.Open(outer)
	f := p.Frame("iframe")
	f.Fill("#name", "Eva")
	f.Axe()
	f.Click("text=Send")
	f.WaitFor("text=Sent by Eva")
	if f.URL() == p.URL() {
		t.Error("the frame is the page")
	}
}

func TestBrowser_TabsOfATestShareCookiesAndTestsDoNot(t *testing.T) {
	t.Parallel()
	url := serve(t, sound, policy)
	p := New(t)
	p.SetCookie(url, "a", "b")
	tab := p.NewTab()
	other := New(t)
	for page, want := range map[*Page]string{p: "a=b", tab: "a=b", other: ""} {
		page.Open(url)
		if got := Eval[string](page, "document.cookie"); got != want {
			t.Errorf("it has the cookies %q, want %q", got, want)
		}
	}
}

func TestBrowser_MeasuresAndTakesPictures(t *testing.T) {
	t.Parallel()
	p := New(t)
	p.Open(serve(t, sound, policy))
	if got, want := p.Weight(), len(sound)+len(style); got != want {
		t.Errorf("the page weighs %d bytes, want %d", got, want)
	}
	if took := p.FirstPaint(); took <= 0 || took > Patience {
		t.Errorf("the first paint came after %s", took)
	}
	light, dark := p.Screenshot(400, 300, "light"), p.Screenshot(400, 300, "dark")
	picture, err := png.Decode(bytes.NewReader(dark))
	if err != nil {
		t.Fatal(err)
	}
	if size := picture.Bounds().Size(); size.X != 400 || size.Y != 300 {
		t.Errorf("the picture is %v", size)
	}
	if bytes.Equal(light, dark) {
		t.Error("light and dark look the same")
	}
}

func TestBrowser_WorksWithoutJavaScript(t *testing.T) {
	t.Parallel()
	p := New(t)
	p.DisableJavaScript()
	p.Open(serve(t, plant(t, "</main>", `<noscript>No script</noscript><script>alert(1)</script></main>`), ""))
	p.WaitFor("text=No script")
	p.Fill("#name", "Ana")
	p.Click("text=Send")
	p.WaitFor("text=Sent by Ana")
}

func TestBrowser_SaysWhatToDoWithoutChromium(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := find(); !errors.Is(err, errMissing) || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("it says %v", err)
	}
}

// dies starts a browser, tells where its profile is, and waits to be killed.
func dies() {
	if _, err := startChromium(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("started")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func TestBrowser_EndsWithTheProcessThatStartedIt(t *testing.T) {
	temp, err := os.MkdirTemp("", "browser-") //nolint:usetesting // the path of a socket in it has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(temp) }()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), diesEnv+"=1", "TMPDIR="+temp)
	if _, err := child.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "started\n" {
		t.Fatalf("the browser of the process did not start: %q, %v", line, err)
	}
	profiles, err := filepath.Glob(filepath.Join(temp, "quintago-chromium-*"))
	if err != nil || len(profiles) != 1 {
		t.Fatalf("%d profiles, %v", len(profiles), err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	testenv.Eventually(t, Patience, func() error {
		if pids := users(t, profiles[0]); len(pids) > 0 {
			return fmt.Errorf("processes %v of the browser still run", pids)
		}
		return nil
	})

	t.Setenv("TMPDIR", temp)
	_, remove, err := testenv.MakeFolder("chromium-")
	if err != nil {
		t.Fatal(err)
	}
	if err := remove(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("the next start left %v, %v", left, err)
	}
}

// users returns the processes whose command line has the profile.
func users(t *testing.T, profile string) (pids []string) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte(profile)) {
			pids = append(pids, filepath.Base(filepath.Dir(path)))
		}
	}
	return pids
}
