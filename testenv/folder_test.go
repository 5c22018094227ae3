package testenv

import (
	"os"
	"testing"
)

func TestParentFolder_IsOnTheDiskForWhoNeedsOrChoosesOne(t *testing.T) {
	t.Setenv("TMPDIR", "")
	disk := os.TempDir()
	memory := disk
	if freeMemory(memoryFolder) >= enoughMemory {
		memory = memoryFolder
	}
	chosen := t.TempDir()
	for _, test := range []struct {
		name, tmpdir string
		opts         Options
		want         string
	}{
		{"a cluster of tests", "", Options{inMemory: true}, memory},
		{"a cluster of tests where TMPDIR is set", chosen, Options{inMemory: true}, chosen},
		{"a durable cluster of tests", "", Options{inMemory: true, Durable: true}, disk},
		{"a cluster of the bench", "", Options{}, disk},
	} {
		t.Setenv("TMPDIR", test.tmpdir)
		if got := test.opts.parentFolder(); got != test.want {
			t.Errorf("%s is in %s, want %s", test.name, got, test.want)
		}
	}
}
