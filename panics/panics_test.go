package panics

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

type private struct{ text string }

func (p private) Error() string { return p.text }

func TestGuard_TellsThePlaceAndNothingOfTheValue(t *testing.T) {
	var missing map[string]*private
	var none []int
	for name, test := range map[string]struct {
		f    func()
		what string
	}{
		"a text":          {func() { panic("sentinel") }, "a value of type string"},
		"an error":        {func() { panic(private{"sentinel"}) }, "a value of type panics.private"},
		"a wrapped error": {func() { panic(fmt.Errorf("sentinel: %w", errors.ErrUnsupported)) }, "a value of type *fmt.wrapError"},
		"a nil pointer":   {func() { _ = missing["sentinel"].text }, "invalid memory address or nil pointer dereference"},
		"an index":        {func() { _ = none[len(missing)] }, "index out of range [0] with length 0"},
		"nil":             {func() { panic(nil) }, "panic called with nil argument"}, //nolint:govet // as a fault would
	} {
		t.Run(name, func(t *testing.T) {
			var told *Error
			err := Guard(func(e *Error) { told = e }, func() error { test.f(); return nil })()
			if err == nil || err != error(told) { //nolint:errorlint // the very one
				t.Fatalf("Guard returned %v and told %v", err, told)
			}
			if !strings.Contains(told.What, test.what) {
				t.Errorf("it tells %q, want %q", told.What, test.what)
			}
			if !strings.HasPrefix(told.Place, "panics/panics_test.go:") || !strings.Contains(told.Stack, told.Place+" panics.") {
				t.Errorf("the place is %s, the stack\n%s", told.Place, told.Stack)
			}
			if all := told.Error() + told.Stack; strings.Contains(all, "sentinel") {
				t.Errorf("it tells the value: %s", all)
			}
		})
	}
}

func TestGuard_PassesResultsOn(t *testing.T) {
	fails := func(*Error) { t.Error("a panic was told") }
	if err := Guard(fails, func() error { return errors.ErrUnsupported })(); err != errors.ErrUnsupported { //nolint:errorlint // it is returned as it is
		t.Errorf("the error is %v", err)
	}
	called := false
	GuardFunc(fails, func() { called = true })()
	if !called {
		t.Error("the function was not called")
	}
}

func TestGuard_WithoutAnyoneToTellLetsThePanicGoOn(t *testing.T) {
	defer func() {
		if v := recover(); v != "on" {
			t.Errorf("the panic is %v", v)
		}
	}()
	GuardFunc(nil, func() { panic("on") })()
}

func TestRecovered_KeepsThePlaceOfAPanicThatGoesOn(t *testing.T) {
	first := &Error{Place: "here", Subject: 1}
	err := Guard(func(*Error) {}, func() error {
		defer func() { panic(Recovered(recover())) }()
		panic(first)
	})()
	if err != error(first) { //nolint:errorlint // the very one
		t.Errorf("the panic became %v", err)
	}
}
