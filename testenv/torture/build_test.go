package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestBuild_FindsTheClockOfThisVersionOfGo(t *testing.T) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(goroot)), "src", "time", "time.go"))
	if err != nil {
		t.Fatal(err)
	}
	moved, err := moveClock(string(source))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(moved, "sec += tortureOffset.Load()") {
		t.Error("the clock does not move")
	}
}

func TestBuild_SaysWhenItDoesNotFindTheClock(t *testing.T) {
	if _, err := moveClock("package time"); err == nil || !strings.Contains(err.Error(), "wallClockRead") {
		t.Errorf("the error is %v, want a sentence that names what to adapt", err)
	}
}
