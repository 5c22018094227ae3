package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// root is the folder of the module.
const root = "../.."

func TestMutants_StillApply(t *testing.T) {
	tree := filepath.Join(t.TempDir(), "tree")
	if err := copyTree(root, tree); err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		if err := m.apply(t.Context(), tree, "--check"); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}

func TestMutants_AreAllOfThePatches(t *testing.T) {
	files, err := patches.ReadDir("mutants")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(file.Name(), ".patch")
		if !slices.ContainsFunc(mutants, func(m mutant) bool { return m.name == name }) {
			t.Errorf("nobody runs the mutant %s", name)
		}
	}
}

func TestMutants_AreCaughtOnlyByWhatTheyBreak(t *testing.T) {
	m := mutant{caught: []rule{ruleLost}}
	if by, caught := m.caughtBy(&verdict{violations: []violation{{ruleRecovery, "slow"}}}); caught {
		t.Errorf("a slow machine caught a mutant that loses events: %s", by)
	}
	by, caught := m.caughtBy(&verdict{violations: []violation{{ruleBytes, "x"}, {ruleLost, "y"}, {ruleLost, "z"}}})
	if !caught || by != "lost 2, bytes 1" {
		t.Errorf("caught: %v, by %q", caught, by)
	}
}
