package console

import (
	"testing"
)

func TestTemplates_CanBeParsed(t *testing.T) {
	if _, err := parseTemplates(); err != nil {
		t.Fatal(err)
	}
}
