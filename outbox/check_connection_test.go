package outbox

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/testenv"
)

// startPooler puts a pooler between the agent and the server. edit gets the parameters at the
// beginning of a connection. It may change them, and it may refuse the connection in PgBouncer's
// words.
func startPooler(t *testing.T, server string, edit func(parameters map[string]string) (refusal string)) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() { // ends with the listener
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the client
				defer func() { _ = client.Close() }()
				_ = pool(client, server, edit)
			}()
		}
	}()
	return listener.Addr().String()
}

// pool serves one connection.
func pool(client net.Conn, server string, edit func(map[string]string) string) error {
	backend := pgproto3.NewBackend(client, client)
	for {
		message, err := backend.ReceiveStartupMessage()
		if err != nil {
			return err
		}
		startup, ok := message.(*pgproto3.StartupMessage)
		if !ok { // the client asks for TLS
			if _, err := client.Write([]byte("N")); err != nil {
				return err
			}
			continue
		}
		if refusal := edit(startup.Parameters); refusal != "" {
			backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: codeProtocolViolation, Message: refusal})
			return backend.Flush()
		}
		return forward(client, server, startup)
	}
}

// forward connects a client to the server and returns when either ends the connection.
func forward(client net.Conn, server string, startup *pgproto3.StartupMessage) error {
	to, err := net.Dial("tcp", server)
	if err != nil {
		return err
	}
	defer to.Close()
	begin, err := startup.Encode(nil)
	if err == nil {
		_, err = to.Write(begin)
	}
	if err != nil {
		return err
	}
	go func() { // ends with either end
		_, _ = io.Copy(client, to)
		_ = client.Close()
	}()
	_, err = io.Copy(to, client)
	return err
}

func TestCheck_SaysThatAPoolerStandsBetween(t *testing.T) {
	env := testenv.NewDB(t)
	const want = "a pooler (such as PgBouncer) is in between"
	for name, edit := range map[string]func(map[string]string) string{
		"that refuses what it does not know": func(p map[string]string) string {
			for parameter := range p {
				if parameter != "user" && parameter != "database" && parameter != "application_name" {
					return "unsupported startup parameter: " + parameter
				}
			}
			return ""
		},
		"that refuses replication": func(p map[string]string) string {
			if p["replication"] != "" {
				return "unsupported startup parameter: replication"
			}
			return ""
		},
		"that overlooks replication": func(p map[string]string) string {
			delete(p, "replication")
			return ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			pooler := startPooler(t, env.Addr(), edit)
			cfg := testConfig(strings.Replace(env.URL, env.Addr(), pooler, 1), env.Slot)
			err := NewTailer(cfg, testLog(t)).Connect(t.Context())
			wantProblem(t, err, "PostgreSQL at "+pooler, want, "database.url must name the PostgreSQL server itself")
			if p, _ := errors.AsType[*Problem](err); !p.Fatal {
				t.Error("waiting would help?")
			}
			db, err := Open(t.Context(), cfg)
			must(t, err)
			defer db.Close()
			if said := strings.Join(notOK(db.Check(t.Context())), "\n"); !strings.Contains(said, want) || !strings.Contains(said, "fail replication connection") {
				t.Errorf("findings:\n%s", said)
			}
		})
	}
}

func TestCheck_SaysWhenALimitOfConnectionsIsTooLow(t *testing.T) {
	for _, test := range []struct {
		name, sql, want string
	}{
		{"role", `alter role %[2]s connection limit 8`, `warn connections: the connection limit of %[2]s is 8, the agent needs 13 | ALTER ROLE "%[2]s" CONNECTION LIMIT -1`},
		{"database", `alter database %[1]s connection limit 8`, `warn connections: the connection limit of %[1]s is 8, the agent needs 13 | ALTER DATABASE "%[1]s" CONNECTION LIMIT -1`},
		{"enough", `alter role %[2]s connection limit 13`, ""},
		{"hardly any", `alter role %[2]s connection limit 1`, `fail connections: the connection limit of %[2]s is 1, the agent needs 13 | `},
	} {
		t.Run(test.name, func(t *testing.T) {
			env := testenv.NewDB(t)
			url := plainRole(t, env)
			role := env.Name + "_plain"
			must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, fmt.Sprintf(test.sql, env.Name, role)))
			db, err := Open(t.Context(), testConfig(url, env.Slot))
			must(t, err)
			defer db.Close()
			said := strings.Join(notOK(db.Check(t.Context())), "\n")
			want := test.want
			if want != "" {
				want = fmt.Sprintf(want, env.Name, role)
			}
			if !strings.Contains(said, want) || want == "" && strings.Contains(said, "connections:") {
				t.Errorf("findings:\n%s", said)
			}
		})
	}
}

func TestCheck_SaysWhenTheServerLeavesTooFewConnections(t *testing.T) {
	cluster := testenv.NewCluster(t, testenv.Options{Settings: map[string]string{"max_connections": "15", "superuser_reserved_connections": "5"}})
	env := cluster.NewDB(t)
	const want = "warn connections: the connections that max_connections leaves to the role are 10, the agent needs 12 | raise max_connections and restart PostgreSQL"
	db, err := Open(t.Context(), testConfig(env.URL, env.Slot))
	must(t, err)
	defer db.Close()
	if said := strings.Join(notOK(db.Check(t.Context())), "\n"); !strings.Contains(said, want) {
		t.Errorf("findings:\n%s", said)
	}
	super, err := Open(t.Context(), testConfig(env.SuperuserURL, env.Slot))
	must(t, err)
	defer super.Close()
	if said := strings.Join(notOK(super.Check(t.Context())), "\n"); strings.Contains(said, "connections:") {
		t.Errorf("as a superuser, whom nothing is reserved from:\n%s", said)
	}
}

// The stream cannot read what the role may not read, which is no fault of its connection.
func TestCheck_DoesNotBlameTheReplicationConnectionForAGrantThatIsMissing(t *testing.T) {
	t.Parallel()
	env := testenv.NewDB(t)
	role, _, _ := strings.Cut(urlUser(env.LeastURL), ":")
	super(t, env, `revoke all on schema webhooks from public, `+quoteIdent(role))
	db, err := Open(t.Context(), testConfig(env.LeastURL, env.Slot))
	must(t, err)
	defer db.Close()
	named := false
	for _, f := range db.Check(t.Context()) {
		if f.Thing == "replication connection" && f.Level != LevelOK || strings.Contains(f.Remedy, "what webhook-agent check names") {
			t.Errorf("%+v", f)
		}
		named = named || strings.Contains(f.Remedy, "GRANT USAGE ON SCHEMA webhooks")
	}
	if !named {
		t.Error("the grant is not named")
	}
}

func TestConnecting_NamesTheLimitThatWasHitAndTheNumberNeeded(t *testing.T) {
	env := testenv.NewDB(t)
	url := plainRole(t, env)
	must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `alter role `+env.Name+`_plain connection limit 0`))
	db, err := Open(t.Context(), testConfig(url, env.Slot))
	must(t, err)
	defer db.Close()
	wantProblem(t, db.Ping(t.Context()), `too many connections for role "`+env.Name+`_plain"`, "the agent needs 13 connections", "ALTER ROLE")
}

func TestCheck_NamesTheEncodingOfTheDatabase(t *testing.T) {
	for encoding, want := range map[string]string{
		"UTF8":      "ok UTF8",
		"LATIN1":    "ok the database's is LATIN1; the agent reads it as UTF8",
		"SQL_ASCII": "warn the database's is SQL_ASCII: what is not UTF-8 in an event fails its delivery",
	} {
		env := testenv.NewDB(t)
		name := env.Name + "_e"
		must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `create database `+name+` template template0 encoding '`+encoding+`'`))
		db, err := Open(t.Context(), testConfig(strings.Replace(env.URL, "/"+env.Name, "/"+name, 1), env.Slot))
		must(t, err)
		for _, f := range db.Check(t.Context()) {
			if f.Thing == "encoding" && string(f.Level)+" "+f.Reason != want {
				t.Errorf("%s: %s %s", encoding, f.Level, f.Reason)
			}
		}
		db.Close()
		must(t, testenv.ExecSQL(t.Context(), env.SuperuserURL, `drop database `+name+` with (force)`))
	}
}

func TestConnecting_NamesAParameterThatPostgreSQLRefuses(t *testing.T) {
	env := testenv.NewDB(t)
	for parameter, want := range map[string]string{
		"nosuchthing=1":           `unrecognized configuration parameter "nosuchthing"`,
		"work_mem=much":           `invalid value for parameter "work_mem"`,
		"options=-c%20nosuch%3D1": `unrecognized configuration parameter "nosuch"`,
		"max_connections=5":       `"max_connections"`,
	} {
		separator := "?"
		if strings.Contains(env.URL, "?") {
			separator = "&"
		}
		cfg := Config{URL: secret.New(env.URL + separator + parameter)}
		cc, err := cfg.connConfig()
		must(t, err)
		_, err = pgconn.ConnectConfig(t.Context(), &cc.Config)
		wantProblem(t, cfg.explain("connect", err), want, "database.url: PostgreSQL refuses one of its parameters", "take the parameter out")
	}
}
