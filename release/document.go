package main

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/quintago/webhook-agent/agent/cli"
)

// These are the folders of the manual and of the completions, in the release's own folder for work
// and in the archives. The names of the completions are those that shells look for.
const (
	manFolder        = "man"
	completionFolder = "completions"
	bashCompletion   = "webhook-agent.bash"
	zshCompletion    = "_webhook-agent"
	fishCompletion   = "webhook-agent.fish"
)

// document writes the manual and the completions of all commands.
func (r *release) document() error {
	for _, folder := range []string{manFolder, completionFolder} {
		if err := os.MkdirAll(filepath.Join(r.work, folder), 0o755); err != nil {
			return err
		}
	}
	if err := r.writeCompletions(); err != nil {
		return err
	}
	return r.writeManual()
}

func (r *release) writeCompletions() error {
	root := cli.Command()
	for name, write := range map[string]func(path string) error{
		bashCompletion: func(path string) error { return root.GenBashCompletionFileV2(path, true) },
		zshCompletion:  root.GenZshCompletionFile,
		fishCompletion: func(path string) error { return root.GenFishCompletionFile(path, true) },
	} {
		if err := write(filepath.Join(r.work, completionFolder, name)); err != nil {
			return err
		}
	}
	return nil
}

// writeManual writes one page for each command, compressed, as packages have them.
func (r *release) writeManual() error {
	root := cli.Command()
	root.InitDefaultCompletionCmd()
	prepareManual(root)
	header := &doc.GenManHeader{Section: "1", Date: &r.time, Source: r.version, Manual: "QuintaGo"}
	folder := filepath.Join(r.work, manFolder)
	if err := doc.GenManTree(root, header, folder); err != nil {
		return err
	}
	pages, err := filepath.Glob(filepath.Join(folder, "*.1"))
	if err != nil {
		return err
	}
	for _, page := range pages {
		if err := compress(page); err != nil {
			return err
		}
	}
	return nil
}

// markdown escapes what cobra would read as Markdown: the texts of the commands are plain.
var markdown = strings.NewReplacer(`\`, `\\`, "`", "\\`", `*`, `\*`, `_`, `\_`, `<`, `\<`, `[`, `\[`)

// prepareManual makes the texts of cmd, and of the commands below it, fit for a manual page.
func prepareManual(cmd *cobra.Command) {
	cmd.DisableAutoGenTag = true // no line about the generator
	cmd.Long = markdown.Replace(cmd.Long)
	for _, c := range cmd.Commands() {
		prepareManual(c)
	}
}

// compress replaces the file at path by path.gz, which has no name and no time in it.
func compress(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	writer, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := writer.Write(text); err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	if err := os.WriteFile(path+".gz", out.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Remove(path)
}
