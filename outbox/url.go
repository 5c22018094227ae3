package outbox

import (
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/secret"
)

const urlForm = "postgres://user:password@host:5432/database"

// driverParameters are parameters that other drivers know and PostgreSQL refuses. None of them matters to the agent.
var driverParameters = regexp.MustCompile(`^(schema|currentSchema|pgbouncer|connection_limit|pool_.*|gssencmode|gssdelegation|` +
	`gsslib|keepalives.*|tcp_user_timeout|tcpKeepAlive|fallback_application_name|load_balance_hosts|loadBalanceHosts|` +
	`replication|sslcompression|sslcrl.*|ssl_min_protocol_version|ssl_max_protocol_version|prepareThreshold|` +
	`prepared_statements?|prepared_statement_cache_size|statement_cache_size|statement-cache-capacity|binary_parameters|` +
	`socket_timeout|socketTimeout|loginTimeout|connectTimeout|reWriteBatchedInserts|ApplicationName|requirepeer|` +
	`server_version|serverVersion|charset|encoding|async_fallback|command_timeout|max_overflow)$`)

// misnamed are parameters whose loss would change where or how the agent connects, and what to write instead.
var misnamed = map[string]string{
	"hostaddr": "host", "hostname": "host", "server": "host", "username": "user", "pwd": "password", "db": "dbname",
	"ssl": "sslmode=require", "tls": "sslmode=require", "sslMode": "sslmode", "sslfactory": "sslmode", "sslrootCert": "sslrootcert",
}

var keyword = regexp.MustCompile(`^[a-z_]+$`)

func badURL(reason, remedy string) error {
	return &Problem{Thing: "database.url", Reason: reason, Remedy: remedy, Fatal: true}
}

// cleanURL takes away blanks and quotes around a URL, and refuses what the library would read as keywords and values
// although it names a host in another way: it would then connect to the local socket.
func cleanURL(text string) (string, error) {
	text = strings.TrimSpace(text)
	for _, quote := range []string{`"`, `'`, "`"} {
		if len(text) >= 2 && strings.HasPrefix(text, quote) && strings.HasSuffix(text, quote) {
			text = strings.TrimSpace(text[1 : len(text)-1])
			break
		}
	}
	if text == "" || strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://") {
		return text, nil
	}
	first, _, assigned := strings.Cut(text, "=")
	switch {
	case strings.Contains(first, "://"):
		return "", badURL("it begins with the name of a driver or of another protocol", "write it as "+urlForm)
	case !assigned || !keyword.MatchString(strings.TrimSpace(first)):
		return "", badURL("it is not a PostgreSQL connection URL", "write it as "+urlForm)
	}
	return text, nil
}

// parseURL parses a connection URL and returns the names of parameters that it has left out. The text of the library's
// error is dropped because it may repeat parts of the URL.
func parseURL(url secret.Text) (cc *pgx.ConnConfig, dropped []string, err error) {
	text, err := cleanURL(url.Reveal())
	if err != nil {
		return nil, nil, err
	}
	if cc, err = pgx.ParseConfig(text); err != nil {
		return nil, nil, badURL("it is not a PostgreSQL connection URL", "write it as "+urlForm)
	}
	for name := range cc.RuntimeParams {
		switch write := misnamed[name]; {
		case write != "":
			return nil, nil, badURL("PostgreSQL does not know its parameter "+name, "write "+write)
		case driverParameters.MatchString(name):
			dropped = append(dropped, name)
			delete(cc.RuntimeParams, name)
		}
	}
	slices.Sort(dropped)
	return cc, dropped, nil
}

// fix sets a parameter of the session, however the URL spells it.
func fix(cc *pgx.ConnConfig, name, value string) {
	for other := range cc.RuntimeParams {
		if strings.EqualFold(other, name) {
			delete(cc.RuntimeParams, other)
		}
	}
	cc.RuntimeParams[name] = value
}

// URLNotices says which parameters of url the agent leaves out.
func URLNotices(url secret.Text) []string {
	_, dropped, err := parseURL(url)
	if err != nil || len(dropped) == 0 {
		return nil
	}
	return []string{"database.url: " + strings.Join(dropped, ", ") + " is for other drivers; the agent leaves it out"}
}
