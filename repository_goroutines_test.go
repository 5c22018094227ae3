package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// guards are the functions that catch the panics of a goroutine or a timer.
var guards = []string{"Guard", "GuardFunc", "guarded", "vital", "dispensable"}

// unguarded returns the goroutines and timers of a file whose panics would end the process.
func unguarded(set *token.FileSet, file *ast.File) (places []string) {
	check := func(n ast.Node, f ast.Expr) {
		switch f := f.(type) {
		case *ast.CallExpr:
			if slices.Contains(guards, lastName(f.Fun)) {
				return
			}
		case *ast.Ident, *ast.SelectorExpr: // the function that ends a context is the library's
			if strings.HasPrefix(lastName(f), "cancel") {
				return
			}
		}
		places = append(places, set.Position(n.Pos()).String())
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			check(n, n.Call.Fun)
		case *ast.CallExpr:
			if name := lastName(n.Fun); (name == "Go" || name == "AfterFunc") && len(n.Args) > 0 {
				check(n, n.Args[len(n.Args)-1])
			}
		}
		return true
	})
	return places
}

// lastName is the name of a function without what it is selected from.
func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

func TestRepository_EveryGoroutineOfTheDataPathIsGuarded(t *testing.T) {
	looked := 0
	for dir, files := range packageFiles(t) {
		// A panic may end a command.
		if dir == "agent/cli" || dir != "outbox" && dir != "agent" && !strings.HasPrefix(dir, "agent/") {
			continue
		}
		for _, path := range files {
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			looked++
			for _, place := range unguarded(set, file) {
				t.Errorf("%s: a panic of this goroutine or timer ends the process: wrap its function (package panics)", place)
			}
		}
	}
	if looked == 0 {
		t.Error("no file was looked at")
	}
}

func TestUnguarded_FindsEachKind(t *testing.T) {
	const text = `package p
func f() {
	go func() {}()
	go work()
	g.Go(func() error { return nil })
	context.AfterFunc(ctx, func() {})
	time.AfterFunc(d, work)
	go panics.GuardFunc(caught, work)()
	g.Go(s.guarded(func() error { return nil }))
	context.AfterFunc(ctx, s.cancelWork)
}`
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, "p.go", text, 0)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, place := range unguarded(set, file) {
		lines = append(lines, strings.Split(place, ":")[1])
	}
	if got := strings.Join(lines, " "); got != "3 4 5 6 7" {
		t.Errorf("unguarded are the lines %s, want 3 4 5 6 7", got)
	}
}
