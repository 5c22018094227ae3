package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/agent/cli"
	"github.com/quintago/webhook-agent/testenv"
)

// roleVariable makes the test binary play a program of the README instead of running tests.
const roleVariable = "FIRST_USE_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "webhook-agent":
		os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	case "signals":
		waitForSignals()
	case "psql":
		sql, err := io.ReadAll(os.Stdin)
		if err == nil {
			err = execute(context.Background(), os.Args[1], string(sql))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// execute runs statements one after another, as psql does.
func execute(ctx context.Context, address, sql string) (err error) {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	for _, statement := range strings.SplitAfter(sql, ";\n") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", strings.TrimSpace(statement), err)
		}
	}
	return nil
}

// block is a piece of shell or SQL of a page.
type block struct{ language, text string }

// blocksOf returns the blocks of shell and SQL between two headings of a page, or from one to the end.
func blocksOf(t *testing.T, page, from, to string) (blocks []block) {
	t.Helper()
	text := read(t, page)
	_, text, found := strings.Cut("\n"+text, "\n"+from+"\n")
	if to != "" {
		var ends bool
		text, _, ends = strings.Cut(text, "\n"+to+"\n")
		found = found && ends
	}
	if !found {
		t.Fatalf("%s has no part from %q to %q", page, from, to)
	}
	for _, b := range regexp.MustCompile("(?s)```(sh|sql)\n(.*?)```").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, block{b[1], b[2]})
	}
	return blocks
}

// TestReadme_FirstUseRunsFromTopToBottom does what a newcomer does: all blocks of the README from
// the installation to the first event, on a server that cannot stream yet. The roles of the app, of
// support and of the database's owner are there before, as with everybody.
func TestReadme_FirstUseRunsFromTopToBottom(t *testing.T) {
	cluster := testenv.NewCluster(t, testenv.Options{Settings: map[string]string{"wal_level": "replica"}})
	superuser := cluster.URL("postgres")
	// Clusters of tests have a role of the agent's already.
	if err := execute(t.Context(), superuser, `alter role webhook_agent rename to former_agent; create role owner login password 'pw'; create role app; create role support;
create database app owner owner;
`); err != nil {
		t.Fatal(err)
	}
	superuser = cluster.URL("app")
	sh := newShell(t, map[string]string{
		"postgres://webhook_agent:change-me@localhost/app": "postgres://webhook_agent:change-me@" + cluster.Addr() + "/app?sslmode=disable",
		"postgres://owner@localhost/app":                   "postgres://owner:pw@" + cluster.Addr() + "/app?sslmode=disable",
	})
	const restart = "sudo systemctl restart postgresql\n"
	blocks := blocksOf(t, "README.md", "## Install it", "## What a customer receives")
	for _, b := range blocks {
		switch {
		case b.language == "sql":
			if err := execute(t.Context(), superuser, b.text); err != nil {
				t.Fatal(err)
			}
		case b.text == restart:
			if err := cluster.Restart(t.Context(), testenv.Fast); err != nil {
				t.Fatal(err)
			}
		default:
			sh.run(t, strings.ReplaceAll(b.text, "webhook-agent run\n", "webhook-agent run 2> run.log &\n"))
		}
	}
	if len(blocks) < 10 {
		t.Errorf("the README has %d blocks of first use", len(blocks))
	}
	for _, want := range []string{"crm.example.com", "books.example.com", "version"} {
		if !strings.Contains(sh.output.String(), want) {
			t.Errorf("the output lacks %q:\n%s", want, sh.output.String())
		}
	}
	conn, err := pgx.Connect(t.Context(), superuser)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	// The host of the first endpoint does not exist, or answers with a failure.
	testenv.Eventually(t, 30*time.Second, func() error {
		var n int
		if err := conn.QueryRow(t.Context(), `select count(*) from webhooks.deliveries where venue = 'venue_01HX' and type = 'lead.stage_changed'`).Scan(&n); err != nil || n != 1 {
			log, _ := os.ReadFile(filepath.Join(sh.folder, "run.log"))
			return fmt.Errorf("%d deliveries of the first event, %w; the agent's log:\n%s", n, err, log)
		}
		return nil
	})
	// The page for the app's developers goes on from there.
	if err := execute(t.Context(), superuser, "create table leads (id text, stage text);\n"); err != nil {
		t.Fatal(err)
	}
	for _, b := range blocksOf(t, "docs/app.md", "# For the app's developers", "") {
		if err := execute(t.Context(), superuser, b.text); err != nil {
			t.Errorf("docs/app.md: %v", err)
		}
	}
	sh.run(t, "kill %1; wait %1 || true\n")
}

// shell is a shell that gets the blocks of a page one by one.
type shell struct {
	folder  string
	replace *strings.Replacer
	stdin   io.Writer
	lines   *bufio.Scanner
	output  strings.Builder
}

// newShell starts a shell in an empty folder. The programs that the README calls are this test binary.
// Those that install something do nothing. addresses has what stands in place of the README's
// addresses.
func newShell(t *testing.T, addresses map[string]string) *shell {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	programs := t.TempDir()
	for name, script := range map[string]string{
		"webhook-agent": "exec env " + roleVariable + "=webhook-agent " + self + ` "$@"`,
		"psql":          "exec env " + roleVariable + "=psql " + self + ` "$@"`,
		"make":          "exit 0",
		"sudo":          "exit 0",
	} {
		if err := os.WriteFile(filepath.Join(programs, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var pairs []string
	for from, to := range addresses {
		if _, err := url.Parse(to); err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, from, to)
	}
	sh := &shell{folder: t.TempDir(), replace: strings.NewReplacer(pairs...)}
	cmd := exec.CommandContext(t.Context(), "bash", "-m", "-s")
	cmd.Dir = sh.folder
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"), "WEBHOOK_AGENT_CONFIG=")
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = write, write
	if sh.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	sh.lines = bufio.NewScanner(read)
	t.Cleanup(func() {
		_ = read.Close()
		_ = cmd.Wait()
	})
	return sh
}

// run runs a block and waits for its end. A command that fails fails the test.
func (sh *shell) run(t *testing.T, text string) {
	t.Helper()
	const end = "the block has ended"
	text = sh.replace.Replace(text)
	// The block is for the shell itself, so that it keeps variables and jobs.
	if _, err := fmt.Fprintf(sh.stdin, "set -e; trap 'echo \"%s with $?\"' EXIT\n%s\nset +e; echo '%s with 0'\n", end, text, end); err != nil {
		t.Fatalf("%v; the output was:\n%s", err, sh.output.String())
	}
	for sh.lines.Scan() {
		line := sh.lines.Text()
		status, ended := strings.CutPrefix(line, end+" with ")
		if !ended {
			sh.output.WriteString(line + "\n")
			continue
		}
		if status != "0" {
			t.Fatalf("status %s of\n%s\nthe output was:\n%s", status, text, sh.output.String())
		}
		return
	}
	t.Fatalf("the shell has ended; the output was:\n%s", sh.output.String())
}
