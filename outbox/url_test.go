package outbox

import (
	"maps"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/secret"
)

// TestParseURL_ConnectsToTheNamedHostOrSaysWhatToWrite has texts that people write into
// DATABASE_URL. The password is always "sentinel".
func TestParseURL_ConnectsToTheNamedHostOrSaysWhatToWrite(t *testing.T) {
	for _, name := range []string{"PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGTZ", "PGAPPNAME", "PGSERVICE"} {
		t.Setenv(name, "")
	}
	const form = "write it as postgres://user:password@host:5432/database"
	for _, test := range []struct {
		url    string
		want   string // a part of the sentence; "" if the agent connects to db.example.com
		notice string
	}{
		{url: "postgres://u:sentinel@db.example.com/app"},
		{url: "postgresql://u:sentinel@db.example.com:6000/app?sslmode=disable"},
		{url: "postgres://db.example.com/app?user=u@tenant&password=sentinel"},
		{url: "postgres://u@db.example.com"},
		{url: "postgres:///app?host=db.example.com&password=sentinel"},
		{url: "host=db.example.com dbname=app password=sentinel"},
		{url: "host = db.example.com password = 'sentinel sentinel'"},
		{url: "password='sentinel' user=u host=db.example.com"},
		// There are blanks and quotes around the URL.
		{url: "  postgres://u:sentinel@db.example.com/app\n"},
		{url: `"postgres://u:sentinel@db.example.com/app"`},
		{url: "'postgres://u:sentinel@db.example.com/app'\n"},
		{url: "\t' host=db.example.com password=sentinel'"},
		{url: "`postgres://u:sentinel@db.example.com/app`"},
		// The URL is for another driver.
		{url: "jdbc:postgresql://db.example.com/app?user=u&password=sentinel", want: form},
		{url: "jdbc:postgresql:app?user=u&password=sentinel", want: form},
		{url: "postgresql+asyncpg://u:sentinel@db.example.com/app?ssl=true", want: form},
		{url: "postgresql+psycopg2://u:sentinel@db.example.com/app", want: form},
		{url: "postgres+ssl://u:sentinel@db.example.com/app?a=b", want: form},
		{url: "mysql://u:sentinel@db.example.com/app", want: form},
		{url: "http://u:sentinel@db.example.com/app?a=b", want: form},
		{url: "POSTGRES://u:sentinel@db.example.com/app?a=b", want: form},
		{url: "psql postgres://u:sentinel@db.example.com/app?a=b", want: form},
		{url: "u:sentinel@db.example.com/app", want: form},
		{url: "u:sentinel@db.example.com/app?sslmode=disable", want: form},
		{url: "db.example.com", want: form},
		{url: "db.example.com:5432/app?sslmode=disable", want: form},
		{url: "postgres:u:sentinel@db.example.com/app?sslmode=disable", want: form},
		{url: "Host=db.example.com;Password=sentinel", want: form},
		{url: "host=db.example.com;password=sentinel;database=app", want: form},
		{url: "user=u;host=db.example.com;password=sentinel", want: form},
		{url: "User ID=u;Password=sentinel;Host=db.example.com;", want: form},
		{url: "DATABASE_URL=postgres://u:sentinel@db.example.com/app", want: form},
		{url: "export DATABASE_URL=postgres://u:sentinel@db.example.com/app", want: form},
		{url: "url=postgres://u:sentinel@db.example.com/app", want: "write postgres://"},
		{url: "user=u password=sentinel Host=db.example.com", want: form},
		{url: "user=u password=sentinel endpoint=db.example.com", want: form},
		{url: "dbname=postgres://u:sentinel@db.example.com/app", want: form},
		{url: "postgres:///app?endpoint=db.example.com&password=sentinel", want: form},
		{url: "-h db.example.com -U u", want: form},
		{url: "hostaddr=10.0.0.1 password=sentinel", want: "hostaddr; write host"},
		{url: "server=db.example.com password=sentinel", want: "server; write host"},
		{url: "postgres:///app?hostname=db.example.com&password=sentinel", want: "hostname; write host"},
		// The password is not encoded.
		{url: "postgres://u:sentinel@more@db.example.com/app", want: "write %40 for @"},
		{url: "postgres://u:12/sentinel@db.example.com/app", want: "write %2F for /"},
		{url: "postgres://u:12#sentinel?@db.example.com/app"},
		{url: "postgres://u:%zzsentinel@db.example.com/app", want: form},
		{url: "postgres://u:sentinel@[db.example.com/app", want: form},
		{url: "postgres://u:sentinel@db.example.com:port/app", want: form},
		// Only other drivers know the parameter.
		{url: "postgres://u:sentinel@db.example.com/app?schema=x", notice: "leaves out schema: the agent's own tables are in schema webhooks"},
		{url: "postgres://u:sentinel@db.example.com/app?currentSchema=x", notice: "currentSchema"},
		{url: "postgres://u:sentinel@db.example.com/app?pgbouncer=true", notice: "pgbouncer"},
		{url: "postgres://u:sentinel@db.example.com/app?connection_limit=1&pool_timeout=2&pool_max_conns=3", notice: "connection_limit, pool_max_conns, pool_timeout"},
		{url: "postgres://u:sentinel@db.example.com/app?gssencmode=disable", notice: "gssencmode"},
		{url: "postgres://u:sentinel@db.example.com/app?keepalives=1&keepalives_idle=2&keepalives_interval=3&keepalives_count=4", notice: "keepalives, keepalives_count, keepalives_idle, keepalives_interval"},
		{url: "host=db.example.com password=sentinel keepalives_count=4 tcp_user_timeout=5", notice: "tcp_user_timeout"},
		{url: "postgres://u:sentinel@db.example.com/app?fallback_application_name=x&load_balance_hosts=random", notice: "fallback_application_name"},
		{url: "postgres://u:sentinel@db.example.com/app?replication=database", notice: "replication"},
		{url: "postgres://u:sentinel@db.example.com/app?prepareThreshold=0&preferQueryMode=simple", notice: "preferQueryMode, prepareThreshold"},
		{url: "postgres://u:sentinel@db.example.com/app?sslcompression=0", notice: "sslcompression"},
		{url: "postgres://u:sentinel@db.example.com/app?default_query_exec_mode=simple_protocol&statement_cache_capacity=0"},
		{url: "postgres://u:sentinel@db.example.com/app?channel_binding=disable&connect_timeout=5&target_session_attrs=primary"},
		// Without the parameter, the agent would connect in another way.
		{url: "postgres://u:sentinel@db.example.com/app?ssl=true"},
		{url: "postgres://u:sentinel@db.example.com/app?ssl=require", want: "ssl; write sslmode=require"},
		{url: "host=db.example.com password=sentinel requiressl=1", want: "requiressl; write sslmode=require"},
		{url: "postgres://u:sentinel@db.example.com/app?sslMode=verify-full", want: "sslMode; write sslmode"},
		{url: "postgres://u:sentinel@db.example.com/app?sslmode=no-verify", want: "another value of sslmode"},
		{url: "postgres://u:sentinel@db.example.com/app?target_session_attrs=master", want: "another value of target_session_attrs"},
		{url: "postgres://u:sentinel@db.example.com/app?sslrootcert=/nowhere/ca.pem", want: "/nowhere/ca.pem"},
		{url: "postgres://u:sentinel@db.example.com/app?gssencmode=require", want: "gssencmode=require"},
		{url: "postgres://u:sentinel@db.example.com/app?sslcrl=/crl.pem", want: "sslcrl; take it out"},
		{url: "postgres://u:sentinel@db.example.com/app?username=u", want: "username; write user"},
	} {
		cfg := Config{URL: secret.New(test.url)}
		cc, err := cfg.connConfig()
		notices := strings.Join(URLNotices(cfg.URL), "\n")
		if said := notices; err != nil || said != "" {
			if err != nil {
				said += err.Error()
			}
			if strings.Contains(said, "sentinel") || !strings.Contains(said, "database.url: ") {
				t.Errorf("%q shows the password, or not its place: %s", test.url, said)
			}
		}
		switch {
		case test.want != "":
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%q gives %v, want %q", test.url, err, test.want)
			}
			continue
		case err != nil:
			t.Errorf("%q is refused: %v", test.url, err)
			continue
		case cc.Host != "db.example.com":
			t.Errorf("%q connects to %q", test.url, cc.Host)
		case (test.notice == "") != (notices == "") || !strings.Contains(notices, test.notice):
			t.Errorf("%q gives the notices %q, want %q", test.url, notices, test.notice)
		}
		if sent := slices.Collect(maps.Keys(cc.RuntimeParams)); len(sent) != len(sessionSettings)+1 { // application_name
			t.Errorf("%q sends %q to the server", test.url, sent)
		}
		if cc.StatementCacheCapacity == 0 || cc.DefaultQueryExecMode != pgx.QueryExecModeCacheStatement {
			t.Errorf("%q changes how statements are run", test.url)
		}
	}
}

func TestParseURL_KeepsTheLocalSocketWhereNoHostIsNamed(t *testing.T) {
	for _, name := range []string{"PGHOST", "PGSERVICE"} {
		t.Setenv(name, "")
	}
	for _, url := range []string{"postgres:///app", "postgres://u:sentinel@/app?statement_timeout=5", "dbname=app user=u application_name=x"} {
		cc, err := Config{URL: secret.New(url)}.connConfig()
		if err != nil {
			t.Errorf("%q: %v", url, err)
			continue
		}
		if ip := net.ParseIP(cc.Host); cc.Host != "localhost" && !strings.HasPrefix(cc.Host, "/") && (ip == nil || !ip.IsLoopback()) {
			t.Errorf("%q connects to %q", url, cc.Host)
		}
	}
}

func TestParseURL_GoesBeforeTheEnvironment(t *testing.T) {
	t.Setenv("PGHOST", "elsewhere.example.com")
	t.Setenv("PGOPTIONS", "-c client_encoding=LATIN1")
	t.Setenv("PGCLIENTENCODING", "LATIN1")
	t.Setenv("PGTZ", "Asia/Tokyo")
	cc, err := Config{URL: secret.New("postgres://u@db.example.com/app?client_encoding=LATIN1&TimeZone=Asia/Tokyo&DateStyle=German")}.connConfig()
	must(t, err)
	if cc.Host != "db.example.com" {
		t.Errorf("connects to %q", cc.Host)
	}
	for name, value := range sessionSettings {
		if cc.RuntimeParams[name] != value {
			t.Errorf("%s is %q, want %q", name, cc.RuntimeParams[name], value)
		}
	}
	for name := range cc.RuntimeParams {
		if lower := strings.ToLower(name); lower != name && sessionSettings[lower] != "" {
			t.Errorf("%s is sent beside %s", name, lower)
		}
	}
}
