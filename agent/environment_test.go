package agent

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/quintago/webhook-agent/testenv"
	"github.com/quintago/webhook-agent/testenv/agenttest"
)

func TestAgent_LeadsWithoutAFileAndLogsADatabaseURLThatIsNotUsed(t *testing.T) {
	env := testenv.NewDB(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{stderr: &agenttest.Buffer{}, admin: fmt.Sprintf("127.0.0.1:%d", port)}
	cmd := exec.Command(path, "run")
	cmd.Dir, cmd.Stderr = t.TempDir(), p.stderr
	cmd.Env = append(os.Environ(), "WEBHOOK_AGENT_DATABASE_URL="+env.LeastURL, "WEBHOOK_AGENT_OUTBOX_SLOT="+env.Slot,
		"WEBHOOK_AGENT_ADMIN_LISTEN="+p.admin, "WEBHOOK_AGENT_LOG_FORMAT=json", "DATABASE_URL=postgres://app:sentinel@db.example.com/app")
	if p.Process, err = testenv.StartProcess(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill(t) })
	p.awaitLeading(t)
	p.terminate(t)
	const notice = `"msg":"DATABASE_URL is not used, because WEBHOOK_AGENT_DATABASE_URL sets database.url; to use it, add --database-url env:DATABASE_URL"`
	if log := p.stderr.String(); strings.Count(log, notice) != 1 || strings.Contains(log, "sentinel") {
		t.Errorf("the log has the notice %d times:\n%s", strings.Count(log, notice), log)
	}
}
