//go:build browser

package browser

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/dom"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/quintago/webhook-agent/testenv"
)

const (
	// Patience is how long a method waits for what should be there. It is long because the machine
	// may be busy.
	Patience = 15 * time.Second
	// commandTimeout is the most that one command to Chromium may take.
	commandTimeout = 30 * time.Second
)

// Page is a tab of a test, or a frame in one. Its methods fail that test on an error, and only the
// goroutine of the test may call them.
type Page struct {
	t      testing.TB
	ctx    func() context.Context // of the tab
	watch  *watch
	parent *Page  // of a frame; nil for a tab
	frame  string // is the selector of the frame in the parent
	scheme string
	width  int64
	silent bool // is true where JavaScript is off
}

// New opens a tab for a test, in a profile of its own. It is 1280 wide, light and English. If there
// is no Chromium, New fails the test with the sentence that says what to install.
func New(t testing.TB) *Page {
	t.Helper()
	parent, err := chromium()
	if err != nil {
		t.Fatal(err)
	}
	return open(t, parent, chromedp.WithNewBrowserContext())
}

// NewTab opens another tab with the same cookies and the same storage.
func (p *Page) NewTab() *Page {
	p.t.Helper()
	return open(p.t, p.ctx())
}

// open opens a tab. The tab is closed with the test, which then fails for what the page did wrong.
func open(t testing.TB, parent context.Context, options ...chromedp.ContextOption) *Page {
	t.Helper()
	w := newWatch()
	ctx, cancel := chromedp.NewContext(parent, append(options, chromedp.WithListener(w.event))...)
	w.dismiss = func() {
		// A tab that is closed meanwhile has no dialog either.
		_, _ = chromedp.Call(ctx, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{})
	}
	if err := chromedp.Do(ctx); err != nil {
		cancel()
		t.Fatalf("open a tab: %v", err)
	}
	p := &Page{t: t, ctx: func() context.Context { return ctx }, watch: w}
	t.Cleanup(func() {
		defer cancel()
		p.report()
	})
	call(p, runtime.AddBinding, runtime.AddBindingParams{Name: reportBinding, ExecutionContextName: reportWorld})
	call(p, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: reportScript, WorldName: reportWorld})
	p.SetLanguage("en")
	p.SetScheme("light")
	p.Viewport(1280, 900)
	return p
}

// report fails the test for the faults of the page, and keeps a picture of it if the test failed.
// The picture is in the folder of go test -artifacts.
func (p *Page) report() {
	for _, fault := range p.Faults() {
		p.t.Error(fault)
	}
	for _, text := range p.watch.missing() {
		p.t.Errorf("the page has no fault with %q", text)
	}
	if !p.t.Failed() {
		return
	}
	if address, err := evaluate[string](p, "document.URL + ': ' + document.body?.innerText.replace(/\\s+/g, ' ').slice(0, 2000)"); err == nil {
		p.t.Logf("the page at the end: %s", address)
	}
	if picture, err := chromedp.Run(p.ctx(), chromedp.CaptureScreenshot()); err == nil {
		_ = os.WriteFile(filepath.Join(p.t.ArtifactDir(), "page.png"), picture, 0o600)
	}
}

// call runs a command in the tab.
func call[P, R any](p *Page, command cdp.Command[P, R], params P) R {
	p.t.Helper()
	result, err := try(p, command, params)
	if err != nil {
		p.t.Fatalf("%s: %v", command.Method, err)
	}
	return result
}

func try[P, R any](p *Page, command cdp.Command[P, R], params P) (R, error) {
	ctx, cancel := context.WithTimeout(p.ctx(), commandTimeout)
	defer cancel()
	return chromedp.Call(ctx, command, params)
}

// evaluate returns the value of an expression in the page, or of the promise that it is.
func evaluate[T any](p *Page, expression string) (value T, err error) {
	yes := true
	params := runtime.EvaluateParams{Expression: expression, ReturnByValue: &yes, AwaitPromise: &yes, UserGesture: &yes}
	if p.parent != nil {
		if params.ContextID, err = p.frameContext(); err != nil {
			return value, err
		}
	}
	result, err := try(p, runtime.Evaluate, params)
	if err != nil {
		return value, err
	}
	if thrown := result.ExceptionDetails; thrown != nil {
		return value, errors.New(exceptionText(thrown))
	}
	if len(result.Result.Value) == 0 { // of undefined
		return value, nil
	}
	err = json.Unmarshal(result.Result.Value, &value)
	return value, err
}

// Eval returns the value of a JavaScript expression, or of the promise that it is. It works where
// JavaScript is off or a Content-Security-Policy forbids eval.
func Eval[T any](p *Page, expression string) T {
	p.t.Helper()
	value, err := evaluate[T](p, expression)
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return value
}

// quote returns a text as a literal of JavaScript.
func quote(text string) string {
	literal, err := json.Marshal(text)
	if err != nil {
		panic(err) // a string always has a form
	}
	return string(literal)
}

// Frame returns the page in a frame. It may navigate; the frame itself must stay.
func (p *Page) Frame(selector string) *Page {
	p.t.Helper()
	f := *p
	f.parent, f.frame = p, selector
	testenv.Eventually(p.t, Patience, func() error {
		_, err := evaluate[bool](&f, "true")
		return err
	})
	return &f
}

// frameContext returns where the scripts of the frame run.
func (p *Page) frameContext() (runtime.ExecutionContextID, error) {
	params := runtime.EvaluateParams{Expression: "document.querySelector(" + quote(p.frame) + ")"}
	if p.parent.parent != nil {
		var err error
		if params.ContextID, err = p.parent.frameContext(); err != nil {
			return 0, err
		}
	}
	element, err := try(p, runtime.Evaluate, params)
	if err != nil {
		return 0, err
	}
	if element.Result == nil || element.Result.ObjectID == "" {
		return 0, fmt.Errorf("the page has no frame %s", p.frame)
	}
	node, err := try(p, dom.DescribeNode, dom.DescribeNodeParams{ObjectID: element.Result.ObjectID})
	if err != nil {
		return 0, err
	}
	id, ok := p.watch.frameContext(node.Node.FrameID)
	if !ok {
		return 0, fmt.Errorf("the frame %s has no page", p.frame)
	}
	return id, nil
}

// Open opens an address and waits until the page and what belongs to it are loaded.
func (p *Page) Open(address string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx(), commandTimeout)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Navigate(address)); err != nil {
		p.t.Fatalf("open %s: %v", address, err)
	}
}

// Back goes back by one page.
func (p *Page) Back() {
	p.t.Helper()
	before := p.URL()
	if _, err := evaluate[any](p, "void history.back()"); err != nil {
		p.t.Fatalf("go back: %v", err)
	}
	p.waitLoaded(func() error {
		if now, err := evaluate[string](p, "document.URL"); err != nil || now == before {
			return errors.Join(fmt.Errorf("the page is still %s", before), err)
		}
		return nil
	})
}

// waitLoaded waits until cond returns nil and the page is loaded.
func (p *Page) waitLoaded(cond func() error) {
	p.t.Helper()
	testenv.Eventually(p.t, Patience, func() error {
		if err := cond(); err != nil {
			return err
		}
		if state, err := evaluate[string](p, "document.readyState"); err != nil || state != "complete" {
			return errors.Join(fmt.Errorf("the page is %q", state), err)
		}
		return nil
	})
}

// Reload loads the page again.
func (p *Page) Reload() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx(), commandTimeout)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Reload()); err != nil {
		p.t.Fatalf("reload: %v", err)
	}
}

// URL returns the address of the page.
func (p *Page) URL() string {
	p.t.Helper()
	return Eval[string](p, "document.URL")
}

// SetLanguage sets the language that the browser prefers, such as "pt-PT". A page that is open
// keeps its own until it is loaded again.
func (p *Page) SetLanguage(language string) {
	p.t.Helper()
	agent := Eval[string](p, "navigator.userAgent") // which the command replaces as well
	call(p, emulation.SetUserAgentOverride, emulation.SetUserAgentOverrideParams{UserAgent: agent, AcceptLanguage: language})
}

// SetScheme sets the colour scheme that the user prefers: light or dark.
func (p *Page) SetScheme(scheme string) {
	p.t.Helper()
	p.scheme = scheme
	p.emulate()
}

// emulate sets what the page sees of the user's wishes. Nothing moves, so that a picture and a look
// at colours show the end of each transition.
func (p *Page) emulate() {
	p.t.Helper()
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: p.scheme},
		{Name: "prefers-reduced-motion", Value: "reduce"},
	}})
}

// Viewport sets the size of the window in CSS pixels.
func (p *Page) Viewport(width, height int64) {
	p.t.Helper()
	p.width = width
	call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1})
}

// DisableJavaScript turns the scripts of pages off, from the next page on.
func (p *Page) DisableJavaScript() {
	p.t.Helper()
	p.silent = true
	call(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
}

// SetCookie stores a cookie for the origin of an address. It is secure if its name says so.
func (p *Page) SetCookie(address, name, value string) {
	p.t.Helper()
	secure := strings.HasPrefix(name, "__")
	call(p, network.SetCookie, network.SetCookieParams{Name: name, Value: value, URL: address, Path: "/", Secure: &secure})
}

// Screenshot returns what the window shows as a PNG, in the size and the scheme.
func (p *Page) Screenshot(width, height int64, scheme string) []byte {
	p.t.Helper()
	p.Viewport(width, height)
	p.SetScheme(scheme)
	// A picture has no scroll bar, so it needs no place for one.
	Eval[any](p, "void (document.documentElement.style.scrollbarGutter = 'auto')")
	// The second frame from now shows what the first one has laid out.
	Eval[bool](p, "document.fonts.ready.then(() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true)))))")
	picture, err := chromedp.Run(p.ctx(), chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Fatalf("take a picture: %v", err)
	}
	return picture
}

// where describes the page in a message.
func (p *Page) where() string {
	address, err := evaluate[string](p, "document.URL.slice(0, 120) + ' (' + document.documentElement.lang + ')'")
	if err != nil {
		address = err.Error()
	}
	return strings.TrimSpace(fmt.Sprintf("%s, %s, %d wide", address, p.scheme, p.width))
}
