package sink

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
)

func TestDoc_ExplainsEveryClass(t *testing.T) {
	files := token.NewFileSet()
	doc, err := parser.ParseFile(files, "doc.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	classes, err := parser.ParseFile(files, "classify.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(classes, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "Class" || len(spec.Values) == 0 {
			return true
		}
		found++
		class, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(doc.Doc.Text(), "\n\t"+class+" ") {
			t.Errorf("the class %s is not explained", class)
		}
		return true
	})
	if found == 0 {
		t.Error("no classes found")
	}
}
