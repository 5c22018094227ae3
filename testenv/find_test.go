package testenv

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeServer makes a folder with programs that can only print their version.
func fakeServer(t *testing.T, dir, version string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho 'postgres (PostgreSQL) " + version + "'\n"
	for _, program := range []string{"postgres", "initdb"} {
		if err := os.WriteFile(filepath.Join(dir, program), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// onlyServers makes FindPostgres see only the servers in root.
func onlyServers(t *testing.T, root string) {
	t.Helper()
	usual := serverFolders
	serverFolders = []string{filepath.Join(root, "*", "bin")}
	t.Cleanup(func() { serverFolders = usual })
	for _, name := range []string{"PG_BIN", "PG"} {
		t.Setenv(name, "")
	}
	t.Setenv("PATH", "/usr/bin:/bin") // for sh
}

func TestFindPostgres_PrefersTheNewestAndIgnoresWhatIsTooOld(t *testing.T) {
	root := t.TempDir()
	onlyServers(t, root)
	for name, version := range map[string]string{"a": "9.6.24", "b": "16.3 (Debian 16.3-1)", "c": "16.14", "d": "13.9", "e": "14.2"} {
		fakeServer(t, filepath.Join(root, name, "bin"), version)
	}
	got, err := FindPostgres(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := (Binaries{Dir: filepath.Join(root, "c", "bin"), Major: 16, Minor: 14}); got != want {
		t.Errorf("found %+v, want %+v", got, want)
	}
}

func TestFindPostgres_ObeysPG_BIN(t *testing.T) {
	root := t.TempDir()
	onlyServers(t, root)
	fakeServer(t, filepath.Join(root, "newest", "bin"), "18.1")
	t.Setenv("PG_BIN", fakeServer(t, t.TempDir(), "19beta1"))
	got, err := FindPostgres(t.Context())
	if err != nil || got.Major != 19 || got.Dir != os.Getenv("PG_BIN") {
		t.Errorf("found %+v, %v, want version 19 of PG_BIN", got, err)
	}
}

func TestFindPostgres_SaysWhatToDoWhenThereIsNone(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, root string){
		"nothing installed":       func(*testing.T, string) {},
		"only 13.9 installed":     func(t *testing.T, root string) { fakeServer(t, filepath.Join(root, "a", "bin"), "13.9") },
		"PG_BIN without initdb":   func(t *testing.T, root string) { t.Setenv("PG_BIN", root) },
		"PG_BIN with 12.1":        func(t *testing.T, root string) { t.Setenv("PG_BIN", fakeServer(t, t.TempDir(), "12.1")) },
		"PG=13":                   func(t *testing.T, root string) { t.Setenv("PG", "13") },
		"PG_BIN prints no number": func(t *testing.T, root string) { t.Setenv("PG_BIN", fakeServer(t, t.TempDir(), "devel")) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			onlyServers(t, root)
			prepare(t, root)
			_, err := FindPostgres(t.Context())
			var notFound *NotFoundError
			if !errors.As(err, &notFound) {
				t.Fatalf("the error is %v, want a NotFoundError", err)
			}
			for _, part := range []string{"apt-get install postgresql", "PG_BIN", "PG=17"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
		})
	}
}

// A file of the package lists the links, because npm packages hold none.
func TestMakeSymlinks_LinksSharedLibraries(t *testing.T) {
	dir := t.TempDir()
	lib := filepath.Join(dir, "native", "lib")
	if err := os.MkdirAll(lib, 0o755); err != nil {
		t.Fatal(err)
	}
	list := `[{"source":"native/lib/libpq.so.5.17","target":"native/lib/libpq.so.5"}]`
	for path, content := range map[string]string{
		filepath.Join(lib, "libpq.so.5.17"):              "library",
		filepath.Join(dir, "native", "pg-symlinks.json"): list,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // a second run finds them made
		if err := makeSymlinks(dir); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(filepath.Join(lib, "libpq.so.5"))
	if err != nil || string(got) != "library" {
		t.Errorf("the link leads to %q, %v", got, err)
	}
}
