package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/quintago/webhook-agent/testenv"
)

func TestExplain_NamesThingReasonAndRemedy(t *testing.T) {
	cfg := testConfig("postgres://someone:sentinel@h.example:5444/shop", "slot_1")
	for _, test := range []struct {
		code  string
		fatal bool
		texts []string
	}{
		{codeInvalidPassword, true, []string{`role "someone"`, "refused the password", "database.url"}},
		{codeInvalidAuthorization, true, []string{`role "someone"`, "the server's words", "pg_hba.conf"}},
		{codeNoDatabase, true, []string{`database "shop"`, "h.example:5444", "does not exist"}},
		{codeNoPrivilege, true, []string{`role "someone"`, "the server's words", "webhook-agent check"}},
		{codeNoTable, true, []string{"schema webhooks", "webhook-agent migrate"}},
		{codeNoSchema, true, []string{"schema webhooks", "webhook-agent migrate"}},
		{codeTooManyConnections, false, []string{"h.example:5444", "max_connections"}},
		{codeLimitExceeded, true, []string{`replication slot "slot_1"`, "max_replication_slots"}},
		{codeDuplicateStatement, true, []string{"h.example:5444", "a pooler (such as PgBouncer) is in between", "the server's words"}},
		{codeNoStatement, true, []string{"h.example:5444", "a pooler (such as PgBouncer) is in between", "the server's words"}},
		{codeNotInEncoding, false, []string{"do something", "not valid UTF-8", "write it in UTF-8"}},
		{codeUntranslatable, false, []string{"do something", "the database's encoding", "UTF8"}},
		{codeReadOnly, false, []string{"read-only", "primary"}},
		{codeAdminShutdown, false, []string{"the server's words", "tries again by itself"}},
		{codeCannotConnectNow, false, []string{"the server's words", "tries again by itself"}},
	} {
		cause := &pgconn.PgError{Code: test.code, Message: "the server's words"}
		err := cfg.explain("do something", fmt.Errorf("wrapped: %w", cause))
		wantProblem(t, err, test.texts...)
		if p, _ := errors.AsType[*Problem](err); p.Fatal != test.fatal {
			t.Errorf("%s: fatal is %t, want %t", test.code, p.Fatal, test.fatal)
		}
		if SQLState(err) != test.code {
			t.Errorf("%s: the cause is lost: SQLSTATE %q", test.code, SQLState(err))
		}
		if strings.Contains(err.Error(), "sentinel") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: not one sentence without secrets: %s", test.code, err)
		}
	}
}

func TestExplain_LeavesOtherErrorsWithTheirOperation(t *testing.T) {
	cfg := testConfig("postgres://h.example/shop", "slot_1")
	if err := cfg.explain("do something", nil); err != nil {
		t.Errorf("nil became %v", err)
	}
	if err := cfg.explain("do something", io.EOF); !errors.Is(err, io.EOF) || err.Error() != "do something: EOF" {
		t.Errorf("got %v", err)
	}
	unknown := &pgconn.PgError{Code: "40001", Message: "the server's words"}
	if err := cfg.explain("do something", unknown); SQLState(err) != "40001" || !strings.HasPrefix(err.Error(), "do something: ") {
		t.Errorf("got %v", err)
	}
	p := &Problem{Thing: "a", Reason: "b", Remedy: "c"}
	if err := cfg.explain("do something", p); err != error(p) || err.Error() != "a: b; c" { //nolint:errorlint // it is returned as it is
		t.Errorf("a Problem became %v", err)
	}
}

func TestConnecting_ExplainsWhatIsWrongWithoutASecret(t *testing.T) {
	t.Parallel()
	_, env := openDB(t)
	port, err := testenv.FreePort()
	must(t, err)
	for _, test := range []struct {
		name, url string
		texts     []string
	}{
		{"not a URL", "postgres://sentinel:sentinel@[", []string{"database.url", "not a PostgreSQL connection URL"}},
		{"nobody listens", fmt.Sprintf("postgres://u:sentinel@127.0.0.1:%d/d", port), []string{fmt.Sprintf("127.0.0.1:%d", port), "connection refused", "check that it runs"}},
		{"no such host", "postgres://u:sentinel@h.invalid/d", []string{"h.invalid", "cannot connect"}},
		{"wrong password", strings.Replace(env.URL, "@", "sentinel@", 1), []string{`role "agent"`, "refused the password"}},
		{"no such database", strings.Replace(env.URL, "/"+env.Name, "/nowhere", 1), []string{`database "nowhere"`, "does not exist"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := testConfig(test.url, "slot")
			tailer := NewTailer(cfg, testLog(t))
			_, _, migrate := Migrate(t.Context(), cfg)
			for part, err := range map[string]error{"tailer": tailer.Connect(t.Context()), "migrate": migrate} {
				wantProblem(t, err, test.texts...)
				if strings.Contains(err.Error(), "sentinel") || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: not one sentence without secrets: %s", part, err)
				}
			}
		})
	}
}

func TestRootCause_SaysATimeoutPlainly(t *testing.T) {
	for want, err := range map[string]error{
		"timed out":                        fmt.Errorf("dial: %w", context.DeadlineExceeded),
		"the server closed the connection": fmt.Errorf("read: %w", io.ErrUnexpectedEOF),
		"the first":                        fmt.Errorf("all: %w", errors.Join(errors.New("the first"), errors.New("the second"))),
	} {
		if got := rootCause(err); got != want {
			t.Errorf("%v: got %q, want %q", err, got, want)
		}
	}
}
