package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// pages are the files of the repository that an archive has beside the binary.
var pages = []string{"README.md", "LICENSE", "config.example.toml", "deploy/webhook-agent.service", "docs/install.md"}

// archive writes the archive for t. Everything in it lies in one folder, and is root's and as old as
// the commit.
func (r *release) archive(t target) error {
	var out bytes.Buffer
	compressed, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return err
	}
	w := tar.NewWriter(compressed)
	folder := filepath.Base(r.name(t, ""))
	if err := r.addFile(w, r.binary(t), folder+"/webhook-agent", 0o755); err != nil {
		return err
	}
	for _, page := range pages {
		if err := r.addFile(w, page, folder+"/"+filepath.Base(page), 0o644); err != nil {
			return err
		}
	}
	for _, sub := range []string{manFolder, completionFolder} {
		entries, err := os.ReadDir(filepath.Join(r.work, sub))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := r.addFile(w, filepath.Join(r.work, sub, e.Name()), folder+"/"+sub+"/"+e.Name(), 0o644); err != nil {
				return err
			}
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := compressed.Close(); err != nil {
		return err
	}
	return os.WriteFile(r.name(t, ".tar.gz"), out.Bytes(), 0o644)
}

// addFile adds the file at path to an archive.
func (r *release) addFile(w *tar.Writer, path, name string, mode int64) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	header := &tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)),
		Uname: "root", Gname: "root", ModTime: r.time,
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = w.Write(content)
	return err
}

// listModules writes the list of the modules in the binary for t, with their versions and licenses.
func (r *release) listModules(ctx context.Context, t target) error {
	return r.command(ctx, t, r.cyclonedx, "app", "-json", "-licenses", "-std", "-noserial", "-notimestamp",
		"-output", r.name(t, ".cdx.json"), "-main", ".", ".")
}

// pack makes the package for t of the kind deb or rpm.
func (r *release) pack(ctx context.Context, t target, kind string) error {
	return r.command(ctx, t, r.nfpm, "package", "--config", "release/nfpm.yaml", "--packager", kind, "--target", r.name(t, "."+kind))
}

// sum writes the checksums of all files of the release, in the format of sha256sum.
func (r *release) sum() error {
	files, err := filepath.Glob(filepath.Join(r.dir, "webhook-agent_*"))
	if err != nil {
		return err
	}
	slices.Sort(files)
	var lines strings.Builder
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		fmt.Fprintf(&lines, "%x  %s\n", sha256.Sum256(content), filepath.Base(file))
	}
	fmt.Print(lines.String())
	return os.WriteFile(filepath.Join(r.dir, markFile), []byte(lines.String()), 0o644)
}
