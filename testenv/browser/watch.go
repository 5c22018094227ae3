//go:build browser

package browser

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"

	"github.com/quintago/webhook-agent/testenv"
)

const (
	// reportWorld is where reportScript runs: beside the page, which cannot see it.
	reportWorld   = "quintago-report"
	reportBinding = "quintagoReport"
	// reportScript reports the violations of the policy of every page and frame.
	reportScript = `addEventListener('securitypolicyviolation', e => quintagoReport(
	e.violatedDirective + ' forbids ' + (e.blockedURI || 'a blob') + ' ' + e.sample + ' on ' + e.documentURI), true)`
)

// watch collects what a tab does wrong. Chromium's events come on a goroutine of chromedp.
type watch struct {
	dismiss func() // closes the dialog that is open

	mu       sync.Mutex // guards what follows
	faults   []fault
	refused  map[string]bool // has the addresses of pages whose status was 400 or more
	contexts map[cdp.FrameID]runtime.ExecutionContextID
	leaving  map[cdp.FrameID]bool // has the frames that go to another page
	expected []string
	met      map[string]bool // has those of expected that came
}

type fault struct {
	text string
	url  string // of the resource that could not be loaded; or empty
}

func newWatch() *watch {
	return &watch{refused: map[string]bool{}, contexts: map[cdp.FrameID]runtime.ExecutionContextID{}, leaving: map[cdp.FrameID]bool{}, met: map[string]bool{}}
}

// event takes an event of the tab. It must not wait, and must not send a command.
func (w *watch) event(ev any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		w.add("exception: " + exceptionText(ev.ExceptionDetails))
	case *runtime.EventConsoleAPICalled:
		switch ev.Type {
		case runtime.ConsoleAPICalledTypeError, runtime.ConsoleAPICalledTypeWarning, runtime.ConsoleAPICalledTypeAssert:
			w.add(fmt.Sprintf("console.%s: %s", ev.Type, argumentsText(ev.Args)))
		}
	case *log.EventEntryAdded:
		w.logged(ev.Entry)
	case *runtime.EventBindingCalled:
		if ev.Name == reportBinding {
			w.add("Content-Security-Policy: " + ev.Payload)
		}
	case *page.EventJavascriptDialogOpening:
		w.add(fmt.Sprintf("dialog (%s): %q", ev.Type, ev.Message))
		go w.dismiss() // ends with the command, which ends with the tab
	case *network.EventResponseReceived:
		if ev.Type == network.ResourceTypeDocument && ev.Response.Status >= 400 {
			w.refused[ev.Response.URL] = true
		}
	case *page.EventFrameRequestedNavigation:
		w.leaving[ev.FrameID] = true
	case *page.EventFrameStartedLoading:
		w.leaving[ev.FrameID] = true
	case *page.EventFrameStoppedLoading:
		delete(w.leaving, ev.FrameID)
	case *page.EventFrameDetached:
		delete(w.leaving, ev.FrameID)
	case *runtime.EventExecutionContextCreated:
		var aux struct {
			IsDefault bool        `json:"isDefault"`
			FrameID   cdp.FrameID `json:"frameId"`
		}
		if json.Unmarshal(ev.Context.AuxData, &aux) == nil && aux.IsDefault {
			w.contexts[aux.FrameID] = ev.Context.ID
		}
	case *runtime.EventExecutionContextsCleared:
		clear(w.contexts)
	}
}

func (w *watch) add(text string) { w.faults = append(w.faults, fault{text: text}) }

// logged takes an entry of the browser's own log.
func (w *watch) logged(e *log.Entry) {
	if e.Level != log.EntryLevelError && e.Level != log.EntryLevelWarning {
		return
	}
	f := fault{text: fmt.Sprintf("log (%s): %s %s", e.Source, e.Text, e.URL)}
	if e.Source == log.EntrySourceNetwork {
		f.url = e.URL
	}
	w.faults = append(w.faults, f)
}

// take returns the faults so far and forgets them. A page whose own status is 400 or more is no
// fault: it is an answer, and the test reads it.
func (w *watch) take() (texts []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
next:
	for _, f := range w.faults {
		if w.refused[f.url] {
			continue
		}
		for _, text := range w.expected {
			if strings.Contains(f.text, text) {
				w.met[text] = true
				continue next
			}
		}
		texts = append(texts, f.text)
	}
	w.faults = nil
	return texts
}

// missing returns the expected faults that did not come.
func (w *watch) missing() (texts []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, text := range w.expected {
		if !w.met[text] {
			texts = append(texts, text)
		}
	}
	return texts
}

func (w *watch) frameContext(id cdp.FrameID) (runtime.ExecutionContextID, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	context, ok := w.contexts[id]
	return context, ok
}

// isLeaving reports whether a frame goes to another page.
func (w *watch) isLeaving() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.leaving) > 0
}

// settle waits until what the page does about a click or a key has begun, and until the page that it
// leads to is loaded. Otherwise the next step could meet the page before.
func (p *Page) settle() {
	p.t.Helper()
	p.turn()
	testenv.Eventually(p.t, commandTimeout, func() error {
		if p.watch.isLeaving() {
			return errors.New("the next page is not loaded")
		}
		return nil
	})
}

// turn waits until the page has done what was waiting to be done. Without JavaScript there are no
// timers.
func (p *Page) turn() {
	turn := "new Promise(done => setTimeout(() => done(true)))"
	if p.silent {
		turn = "true"
	}
	_, _ = evaluate[bool](p, turn) // a page that is left meanwhile answers with an error
}

// Faults returns what the page has done wrong so far (see the package documentation), and forgets
// it. What is left at the end fails the test.
func (p *Page) Faults() []string {
	p.t.Helper()
	p.turn() // what the page has caused has arrived when the answer has
	return p.watch.take()
}

// ExpectFault takes the faults that contain a text for right. The test fails if none comes.
func (p *Page) ExpectFault(text string) {
	p.watch.mu.Lock()
	defer p.watch.mu.Unlock()
	p.watch.expected = append(p.watch.expected, text)
}

// exceptionText returns what an exception says.
func exceptionText(d *runtime.ExceptionDetails) string {
	text := d.Text
	if d.Exception != nil {
		text += " " + d.Exception.Description + string(d.Exception.Value)
	}
	return text
}

// argumentsText returns the arguments of a call of the console as a person reads them.
func argumentsText(args []*runtime.RemoteObject) string {
	var texts []string
	for _, arg := range args {
		texts = append(texts, string(arg.Value)+arg.Description)
	}
	return strings.Join(texts, " ")
}
