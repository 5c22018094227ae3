//go:build browser

package browser

import (
	_ "embed"
	"fmt"
	"strings"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/quintago/webhook-agent/testenv"
)

// findScript makes the functions with which the methods below look at a page.
//
//go:embed find.js
var findScript string

// look calls a function of find.js with arguments that are JSON already.
func look[T any](p *Page, function string, args ...string) (T, error) {
	return evaluate[T](p, fmt.Sprintf("(() => { %s\nreturn %s(%s) })()", findScript, function, strings.Join(args, ", ")))
}

// spot is where to click.
type spot struct {
	X, Y  float64
	Error string // says why the element cannot be clicked; or empty
}

// Click clicks an element as a person does: it must be visible, enabled, and covered by nothing.
func (p *Page) Click(selector string) {
	p.t.Helper()
	p.ClickSlowly(selector, func() {})
}

// ClickSlowly is Click, but calls during while the button of the mouse is down.
func (p *Page) ClickSlowly(selector string, during func()) {
	p.t.Helper()
	var at spot
	testenv.Eventually(p.t, Patience, func() (err error) {
		if at, err = p.spot("clickable", selector); err != nil {
			return fmt.Errorf("click %s: %w", selector, err)
		}
		return nil
	})
	for _, kind := range []input.DispatchMouseEventType{input.DispatchMouseEventTypeMouseMoved, input.DispatchMouseEventTypeMousePressed, input.DispatchMouseEventTypeMouseReleased} {
		params := input.DispatchMouseEventParams{Type: kind, X: at.X, Y: at.Y}
		if kind != input.DispatchMouseEventTypeMouseMoved {
			params.Button, params.ClickCount = input.MouseButtonLeft, 1
		}
		if kind == input.DispatchMouseEventTypeMouseReleased {
			during()
		}
		call(p, input.DispatchMouseEvent, params)
	}
	p.settle()
}

// spot returns a point of an element, in the coordinates of the tab.
func (p *Page) spot(function, selector string) (spot, error) {
	at, err := look[spot](p, function, quote(selector))
	if err == nil && at.Error != "" {
		err = fmt.Errorf("%s", at.Error)
	}
	if err != nil || p.parent == nil {
		return at, err
	}
	corner, err := p.parent.spot("corner", p.frame)
	return spot{X: at.X + corner.X, Y: at.Y + corner.Y}, err
}

// Fill replaces the text of a field by typing. It chooses the option of a list by its value.
func (p *Page) Fill(selector, text string) {
	p.t.Helper()
	var isList bool
	testenv.Eventually(p.t, Patience, func() (err error) {
		if isList, err = look[bool](p, "focusField", quote(selector), quote(text)); err != nil {
			return fmt.Errorf("fill %s: %w", selector, err)
		}
		return nil
	})
	if isList {
		p.settle()
		return
	}
	if text == "" {
		p.Press("Backspace")
		return
	}
	call(p, input.InsertText, input.InsertTextParams{Text: text})
}

// keys are the names of keys that Press takes, beside those that write a character.
var keys = map[string]string{
	"Tab": kb.Tab, "Enter": kb.Enter, "Space": " ", "Escape": kb.Escape, "Backspace": kb.Backspace, "Home": kb.Home, "End": kb.End,
	"ArrowUp": kb.ArrowUp, "ArrowDown": kb.ArrowDown, "ArrowLeft": kb.ArrowLeft, "ArrowRight": kb.ArrowRight,
}

// Press presses keys one after another, such as Press("Shift+Tab", "Enter"). What is no name of a
// key is typed.
func (p *Page) Press(names ...string) {
	p.t.Helper()
	for _, name := range names {
		var options []chromedp.KeyOption
		if rest, shifted := strings.CutPrefix(name, "Shift+"); shifted {
			name, options = rest, append(options, chromedp.KeyModifiers(chromedp.Modifier(8)))
		}
		text, known := keys[name]
		if !known {
			text = name
		}
		if err := chromedp.Do(p.ctx(), chromedp.KeyEvent(text, options...)); err != nil {
			p.t.Fatalf("press %s: %v", name, err)
		}
		if known {
			p.settle()
		}
	}
}

// TabTo presses Tab until an element has the focus. Each element on the way must show that it has
// the focus, and must not be hidden. It fails the test when the focus has been everywhere.
func (p *Page) TabTo(selector string) {
	p.t.Helper()
	const most = 300
	var last string
	for range most {
		p.Press("Tab")
		at, err := look[struct {
			Reached bool
			Name    string
			Error   string
		}](p, "focused", quote(selector))
		if err != nil {
			p.t.Fatalf("press Tab up to %s: %v", selector, err)
		}
		if at.Error != "" {
			p.t.Errorf("%s: %s %s", p.where(), at.Name, at.Error)
		}
		if at.Reached {
			return
		}
		last = at.Name
	}
	p.t.Fatalf("%d times Tab did not reach %s; the last was %s", most, selector, last)
}

// WaitFor waits until the page is loaded and shows an element.
func (p *Page) WaitFor(selector string) {
	p.t.Helper()
	testenv.Eventually(p.t, Patience, func() error {
		n, err := look[int](p, "loadedCount", quote(selector))
		if err != nil {
			return fmt.Errorf("look for %s: %w", selector, err)
		}
		if n == 0 {
			return fmt.Errorf("the page does not show %s", selector)
		}
		return nil
	})
}

// WaitGone waits until the page shows no such element.
func (p *Page) WaitGone(selector string) {
	p.t.Helper()
	testenv.Eventually(p.t, Patience, func() error {
		n, err := look[int](p, "count", quote(selector))
		if err != nil {
			return fmt.Errorf("look for %s: %w", selector, err)
		}
		if n > 0 {
			return fmt.Errorf("the page shows %s", selector)
		}
		return nil
	})
}

// Count returns how many of these elements the page shows now.
func (p *Page) Count(selector string) int {
	p.t.Helper()
	n, err := look[int](p, "count", quote(selector))
	if err != nil {
		p.t.Fatalf("count %s: %v", selector, err)
	}
	return n
}

// Text returns the text of an element as a person reads it, or what a field contains.
func (p *Page) Text(selector string) string {
	p.t.Helper()
	var text string
	testenv.Eventually(p.t, Patience, func() (err error) {
		if text, err = look[string](p, "text", quote(selector)); err != nil {
			return fmt.Errorf("read %s: %w", selector, err)
		}
		return nil
	})
	return text
}

// Attribute returns an attribute of an element. It is empty if there is none.
func (p *Page) Attribute(selector, name string) string {
	p.t.Helper()
	var value string
	testenv.Eventually(p.t, Patience, func() (err error) {
		if value, err = look[string](p, "attribute", quote(selector), quote(name)); err != nil {
			return fmt.Errorf("read %s of %s: %w", name, selector, err)
		}
		return nil
	})
	return value
}
