package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

// run runs a command line as it is, and returns the exit status and what it printed.
func run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = Main(t.Context(), args, &out, &errs)
	return status, out.String(), errs.String()
}

// nowhere is a database that does not answer.
const nowhere = "postgres://agent:sentinel@127.0.0.1:1/db"

func TestConfig_TheFlagNamesTheDatabaseOfEveryCommand(t *testing.T) {
	env := testenv.NewDB(t)
	addDeliveries(t, env, agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*"))
	path := agenttest.WriteFile(t, agenttest.ConfigText(env, nowhere))
	file := agenttest.WriteFile(t, env.URL+"\n")
	t.Setenv("OWNER_URL", env.URL)
	t.Setenv("WEBHOOK_AGENT_DATABASE_URL", nowhere)
	for _, url := range []string{env.URL, "env:OWNER_URL", "file:" + file} {
		for _, command := range []string{"migrate", "check", "status", "endpoints list", "deliveries list"} {
			status, stdout, stderr := run(t, append(strings.Fields(command), "--config", path, "--database-url", url)...)
			if strings.Contains(stdout+stderr, "cannot connect") || stderr != "" || status != exitFine && command != "check" {
				t.Errorf("%s: status %d: %s%s", command, status, stdout, stderr)
			}
		}
	}
	for _, command := range []string{"migrate", "status"} {
		if status, stdout, stderr := run(t, command, "--config", path); status != exitFailed || !strings.Contains(stderr, "127.0.0.1:1: cannot connect") {
			t.Errorf("%s without the flag: status %d: %s%s", command, status, stdout, stderr)
		}
	}
	if status, _, stderr := run(t, "status", "--config", path, "--database-url", ""); status != exitUsage || !strings.Contains(stderr, "--database-url is empty; give it a value, or leave it out") {
		t.Errorf("an empty flag: status %d: %s", status, stderr)
	}
}

func TestConfig_ADatabaseURLThatIsNotUsedIsSaid(t *testing.T) {
	env := testenv.NewDB(t)
	agenttest.AddEndpoint(t, env, "venue_a", "https://h.example/", "*")
	path := agenttest.WriteFile(t, agenttest.ConfigText(env, env.URL))
	t.Setenv("DATABASE_URL", nowhere)
	want := "webhook-agent: DATABASE_URL is not used, because " + path + " sets database.url; to use it, add --database-url env:DATABASE_URL\n"
	for _, command := range []string{"migrate", "check", "status", "endpoints list"} {
		if status, _, stderr := run(t, append(strings.Fields(command), "--config", path)...); stderr != want || status != exitFine && command != "check" {
			t.Errorf("%s: status %d: %s", command, status, stderr)
		}
	}
	if status, _, stderr := run(t, "status", "--config", path, "--database-url", "env:DATABASE_URL"); status != exitFailed || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "127.0.0.1:1") {
		t.Errorf("with what the notice says: status %d: %s", status, stderr)
	}
	t.Setenv("DATABASE_URL", env.URL)
	if status, _, stderr := run(t, "status", "--config", path); status != exitFine || stderr != "" {
		t.Errorf("with the URL of the file: status %d: %s", status, stderr)
	}
}

// TestMigrate_PrintsWithoutADatabase prints the schema where no database is named, and where the
// name of one leads nowhere.
func TestMigrate_PrintsWithoutADatabase(t *testing.T) {
	t.Chdir(t.TempDir())
	file := agenttest.WriteFile(t, "[database]\nurl = \"env:NO_SUCH_VARIABLE\"\n[outbox]\npublication = \"mine\"\n")
	for _, args := range [][]string{{"migrate", "--print"}, {"migrate", "--print", "--from", "18", "--config", file}, {"migrate", "--print", "--database-url", "env:NO_SUCH_VARIABLE"}} {
		if status, stdout, stderr := run(t, args...); status != exitFine || stderr != "" || !strings.Contains(stdout, "publication") {
			t.Errorf("%q: status %d: %s", args, status, stderr)
		}
	}
	if _, stdout, _ := run(t, "migrate", "--print", "--config", file); !strings.Contains(stdout, `create publication "mine"`) {
		t.Error("does not print what the configuration says")
	}
}

func TestConfig_TheEnvironmentAloneIsEnough(t *testing.T) {
	t.Chdir(t.TempDir())
	status, _, stderr := run(t, "status")
	want := "webhook-agent: database.url: is missing, and there is no configuration file; write one by webhook-agent init, or set the environment variable DATABASE_URL to postgres://user:password@host:5432/database\n"
	if status != exitUsage || stderr != want {
		t.Errorf("with nothing: status %d: %s", status, stderr)
	}
	env := testenv.NewDB(t)
	t.Setenv("DATABASE_URL", env.LeastURL)
	t.Setenv("WEBHOOK_AGENT_OUTBOX_SLOT", env.Slot)
	for _, command := range []string{"status", "check"} {
		if status, stdout, stderr := run(t, command); status != exitFine || !strings.Contains(stdout, env.Slot) || stderr != "" {
			t.Errorf("%s with the environment: status %d: %s%s", command, status, stdout, stderr)
		}
	}
	for _, name := range []string{"--config", "WEBHOOK_AGENT_CONFIG"} {
		args := []string{"status"}
		if name == "--config" {
			args = append(args, name, "/no/such.toml")
		} else {
			t.Setenv(name, "/no/such.toml")
		}
		if status, _, stderr := run(t, args...); status != exitUsage || !strings.HasPrefix(stderr, "webhook-agent: /no/such.toml: the configuration file cannot be read") {
			t.Errorf("a file that is named by %s and missing: status %d: %s", name, status, stderr)
		}
	}
}
