//go:build browser

package browser

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/quintago/webhook-agent/testenv"
)

const (
	axeVersion = "4.14.1"
	// axeSum is the SHA-256 of axe.min.js in the npm package of that version.
	axeSum = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"

	// everyRule and colourRules choose rules, as axe.run reads it.
	everyRule   = "{ type: 'tag', values: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22a', 'wcag22aa', 'best-practice'] }"
	colourRules = "{ type: 'rule', values: ['color-contrast', 'link-in-text-block'] }"
)

// axeSource returns the source of axe-core, which checks pages for what the rules of accessibility
// ask. npm fetches it once into the user's cache folder.
var axeSource = sync.OnceValues(func() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder for axe-core: %w", err)
	}
	path := filepath.Join(cache, "quintago-axe", "axe-"+axeVersion+".min.js")
	if source, err := os.ReadFile(path); err == nil && sum(source) == axeSum {
		return string(source), nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("make the cache folder: %w", err)
	}
	work, err := os.MkdirTemp(filepath.Dir(path), "new-")
	if err != nil {
		return "", fmt.Errorf("make the cache folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	if _, err := testenv.NPM(context.Background(), "pack", "--pack-destination", work, "axe-core@"+axeVersion); err != nil {
		return "", fmt.Errorf("fetch axe-core (it needs npm and a registry): %w", err)
	}
	packed, err := os.ReadFile(filepath.Join(work, "axe-core-"+axeVersion+".tgz"))
	if err != nil {
		return "", fmt.Errorf("fetch axe-core: %w", err)
	}
	source, err := unpack(packed, "package/axe.min.js")
	if err != nil {
		return "", fmt.Errorf("fetch axe-core: %w", err)
	}
	if got := sum(source); got != axeSum {
		return "", fmt.Errorf("axe-core %s has the checksum %s, want %s", axeVersion, got, axeSum)
	}
	// The new name appears when the file is complete: two test binaries may be here at a time.
	complete := filepath.Join(work, "axe.js")
	if err := os.WriteFile(complete, source, 0o644); err != nil {
		return "", fmt.Errorf("keep axe-core: %w", err)
	}
	if err := os.Rename(complete, path); err != nil {
		return "", fmt.Errorf("keep axe-core: %w", err)
	}
	return string(source), nil
})

func sum(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// unpack returns a file of a package of npm.
func unpack(packed []byte, name string) ([]byte, error) {
	plain, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	for files := tar.NewReader(plain); ; {
		file, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("the package has no %s", name)
		}
		if err != nil {
			return nil, err
		}
		if file.Name == name {
			return io.ReadAll(files)
		}
	}
}

// Axe fails the test for each violation of the rules of WCAG 2.0 to 2.2, A and AA, and of the best
// practices, that axe-core finds in the page as it is.
func (p *Page) Axe() {
	p.t.Helper()
	for _, violation := range p.violations(everyRule) {
		p.t.Errorf("%s: %s", p.where(), violation)
	}
}

// AxeColours is Axe with the rules about colours alone. It is for the other scheme of a page that
// Axe has looked at.
func (p *Page) AxeColours() {
	p.t.Helper()
	for _, violation := range p.violations(colourRules) {
		p.t.Errorf("%s: %s", p.where(), violation)
	}
}

// violations returns the rule, the element and the remedy of each violation of some rules.
func (p *Page) violations(rules string) (texts []string) {
	p.t.Helper()
	source, err := axeSource()
	if err != nil {
		p.t.Fatal(err)
	}
	if !Eval[bool](p, "typeof axe === 'object'") {
		Eval[any](p, source+"\nvoid 0")
	}
	result := Eval[string](p, `axe.run(document, { runOnly: `+rules+`, resultTypes: ['violations'], iframes: false, preload: false }).then(r => JSON.stringify(r.violations.map(v => (
	{ id: v.id, nodes: v.nodes.map(n => ({ target: n.target.join(' '), html: n.html.slice(0, 200), remedy: n.failureSummary })) }))))`)
	var found []struct {
		ID    string `json:"id"`
		Nodes []struct {
			Target string `json:"target"`
			HTML   string `json:"html"`
			Remedy string `json:"remedy"`
		} `json:"nodes"`
	}
	if err := json.Unmarshal([]byte(result), &found); err != nil {
		p.t.Fatalf("read the result of axe: %v", err)
	}
	for _, rule := range found {
		for _, node := range rule.Nodes {
			texts = append(texts, fmt.Sprintf("axe %s: %s: %s (%s)", rule.ID, node.Target, strings.Join(strings.Fields(node.Remedy), " "), node.HTML))
		}
	}
	return texts
}
