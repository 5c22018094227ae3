package outbox

import (
	"errors"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/quintago/webhook-agent/secret"
)

const urlForm = "postgres://user:password@host:5432/database"

// foreign are parameters of other drivers, and parameters of libpq that pgx does not know. pgx
// would send them to PostgreSQL as settings of the session, and PostgreSQL would refuse the
// connection. The agent does not need them, for the reason that is given with each. So it leaves
// them out, and a notice says so. A name that ends in * stands for all names that begin so.
var foreign = []struct{ why, names string }{
	{"the agent's own tables are in schema webhooks, and outbox.table names its schema",
		"schema currentSchema"},
	{"the agent's pool has a fixed size",
		"connection_limit pool_* max_overflow min_pool_size max_pool_size minimum_pool_size " +
			"maximum_pool_size pooling idle_timeout max_idle_connections max_open_connections"},
	{"the agent needs the server itself, not a pooler",
		"pgbouncer supa"},
	{"the agent prepares its statements itself",
		"prepareThreshold prepared_statements prepared_statement_cache_size statement_cache_size " +
			"statement-cache-capacity preferQueryMode binary_parameters disable_prepared_binary_result " +
			"preparedStatementCacheQueries preparedStatementCacheSizeMiB prefer_simple_protocol " +
			"reWriteBatchedInserts defaultRowFetchSize stringtype autosave"},
	{"the agent bounds the time of its statements itself, and notices a dead connection by it",
		"keepalives keepalives_* tcp_user_timeout tcpKeepAlive socket_timeout socketTimeout " +
			"loginTimeout connectTimeout command_timeout cancelSignalTimeout"},
	{"the agent opens its replication connection itself",
		"replication"},
	{"the agent is called by application_name",
		"fallback_application_name ApplicationName"},
	{"the agent tries the hosts in their order",
		"load_balance_hosts loadBalanceHosts targetServerType hostRecheckSeconds"},
	{"the agent uses no GSSAPI encryption and no compression",
		"gssencmode gssEncMode gssdelegation gsslib sslcompression"},
	{"the agent speaks UTF8 always",
		"charset encoding client-encoding characterEncoding"},
	{"it is a setting of another driver",
		"server_version serverVersion assumeMinServerVersion async_fallback logger loggerLevel " +
			"useUnicode zeroDateTimeBehavior"},
}

// misnamed are parameters that the agent refuses. Without them, it would connect to another place
// or less safely. The value says what to write instead.
var misnamed = map[string]string{
	"hostaddr": "write host", "hostname": "write host", "server": "write host", "addr": "write host",
	"address": "write host", "socket": "write host", "unix_sock": "write host", "url": "write " + urlForm,
	"uri": "write " + urlForm, "dsn": "write " + urlForm, "username": "write user", "userid": "write user",
	"pass": "write password", "pwd": "write password", "db": "write dbname",
	"databaseName": "write dbname", "tls": "write sslmode=require", "ssl": "write sslmode=require",
	"sslMode": "write sslmode", "ssl_mode": "write sslmode", "requiressl": "write sslmode=require",
	"sslfactory": "write sslmode", "sslrootCert": "write sslrootcert", "sslaccept": "write sslmode=require",
	"sslidentity": "write sslcert and sslkey", "sslcrl": "take it out: the agent reads no revocation lists",
	"sslcrldir":                "take it out: the agent reads no revocation lists",
	"ssl_min_protocol_version": "take it out: the agent speaks TLS 1.2 and newer",
	"ssl_max_protocol_version": "take it out: the agent speaks TLS 1.2 and newer",
	"requirepeer":              "take it out and protect the socket's folder",
}

func badURL(reason, remedy string) error {
	return &Problem{Thing: "database.url", Reason: reason, Remedy: remedy, Fatal: true}
}

var (
	notAURL  = badURL("it is not a PostgreSQL connection URL", "write it as "+urlForm)
	keyword  = regexp.MustCompile(`^[a-z_]+$`)
	hostWord = regexp.MustCompile(`(?:^|[?&\s])host\s*=\s*[^&\s]`)
)

// cleanURL removes blanks and quotes around a URL. It refuses a text that names a host in another
// form but that pgx would read as keywords and values: the agent would then connect to the local
// socket.
func cleanURL(text string) (string, error) {
	text = strings.TrimSpace(text)
	for _, quote := range []string{`"`, `'`, "`"} {
		if len(text) >= 2 && strings.HasPrefix(text, quote) && strings.HasSuffix(text, quote) {
			text = strings.TrimSpace(text[1 : len(text)-1])
			break
		}
	}
	if rest, isURL := cutScheme(text); isURL {
		authority, path, _ := strings.Cut(rest, "/")
		path, _, _ = strings.Cut(path, "?")
		if !strings.Contains(authority, "@") && strings.Contains(path, "@") {
			// pgx takes the text before the slash for the host.
			return "", badURL("its user or password holds a slash", "write %2F for / there, and %40 for @")
		}
		return text, nil
	}
	first, _, assigned := strings.Cut(text, "=")
	switch {
	case text == "":
		return text, nil
	case strings.Contains(first, "://"), strings.HasPrefix(text, "jdbc:"):
		return "", badURL("it begins with the name of a driver or of another protocol", "write it as "+urlForm)
	case !assigned || !keyword.MatchString(strings.TrimSpace(first)):
		return "", notAURL
	}
	return text, nil
}

// cutScheme returns what follows the scheme of a PostgreSQL URL.
func cutScheme(text string) (rest string, isURL bool) {
	if rest, isURL = strings.CutPrefix(text, "postgres://"); isURL {
		return rest, true
	}
	return strings.CutPrefix(text, "postgresql://")
}

// namesHost reports whether a URL, or a string of keywords and values, says where the server is.
func namesHost(text string) bool {
	rest, isURL := cutScheme(text)
	if isURL {
		authority := rest
		if end := strings.IndexAny(rest, "/?"); end >= 0 {
			authority = rest[:end]
		}
		authority = authority[strings.LastIndexByte(authority, '@')+1:]
		if authority != "" {
			return true
		}
	}
	return hostWord.MatchString(text)
}

// parseURL parses a connection URL. It returns notices about the parameters that it has left out.
// It repeats no text of pgx's error, which may hold parts of the URL.
func parseURL(url secret.Text) (cc *pgx.ConnConfig, notices []string, err error) {
	text, err := cleanURL(url.Reveal())
	if err != nil {
		return nil, nil, err
	}
	if cc, err = pgx.ParseConfig(text); err != nil {
		return nil, nil, unparsed(text, err)
	}
	if err := checkNames(cc); err != nil {
		return nil, nil, err
	}
	plain, err := pgx.ParseConfig("")
	if err != nil {
		return nil, nil, badURL("a PG… variable of the environment has a value that cannot be used", "correct or unset it")
	}
	// A URL that was written for pgx behind a pooler may ask for another way to run statements.
	cc.DefaultQueryExecMode = plain.DefaultQueryExecMode
	cc.StatementCacheCapacity, cc.DescriptionCacheCapacity = plain.StatementCacheCapacity, plain.DescriptionCacheCapacity
	if notices, err = leaveOut(cc.RuntimeParams); err != nil {
		return nil, nil, err
	}
	if text == "" || namesHost(text) {
		return cc, notices, nil
	}
	for name, value := range cc.RuntimeParams {
		if plain.RuntimeParams[name] != value && !localSettings[strings.ToLower(name)] {
			return nil, nil, badURL("it names no host, and one of its parameters is unknown", "write it as "+urlForm+", or take the parameter out")
		}
	}
	return cc, notices, nil
}

// choices are the values of parameters that have a fixed set of values.
var choices = map[string][]string{
	"sslmode":              {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"},
	"channel_binding":      {"disable", "prefer", "require"},
	"target_session_attrs": {"any", "read-write", "read-only", "primary", "standby", "prefer-standby"},
}

var assignment = regexp.MustCompile(`(?:^|[?&\s])([a-z_]+)\s*=\s*'?([^&\s']*)`)

// unparsed returns an error that says why pgx cannot parse the text.
func unparsed(text string, err error) error {
	if file, ok := errors.AsType[*fs.PathError](err); ok {
		return badURL("a file that it names cannot be read ("+file.Error()+")", "correct its path or its rights")
	}
	for _, found := range assignment.FindAllStringSubmatch(text, -1) {
		if values := choices[found[1]]; values != nil && !slices.Contains(values, found[2]) {
			return badURL("it has another value of "+found[1]+" than PostgreSQL knows", "write one of "+strings.Join(values, ", "))
		}
	}
	return notAURL
}

// checkNames refuses what cannot be the name of a host, a role or a database. Such a name holds a
// part of the password, or of a string in another driver's form. These names appear in messages.
func checkNames(cc *pgx.ConnConfig) error {
	for _, name := range []string{cc.User, cc.Database} {
		if strings.Contains(name, "://") || strings.Contains(name, ";") && strings.Contains(name, "=") {
			return notAURL
		}
	}
	hosts := []string{cc.Host}
	for _, f := range cc.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	for _, host := range hosts {
		switch {
		case strings.HasPrefix(host, "/"):
		case strings.Contains(host, "@"):
			return badURL("its user or password holds an @", "write %40 for @ there")
		case strings.ContainsAny(host, "/;=?#&<>\"'\\ \t\n"):
			return notAURL
		}
	}
	return nil
}

// localSettings are the settings of a session that a URL without a host may hold. Any other
// parameter may be the host under another driver's name, which must not be ignored.
var localSettings = map[string]bool{
	"application_name": true, "options": true, "timezone": true, "client_encoding": true, "search_path": true,
	"statement_timeout": true, "lock_timeout": true, "datestyle": true, "role": true, "work_mem": true,
}

// leaveOut removes the foreign parameters and refuses the misnamed ones.
func leaveOut(params map[string]string) (notices []string, err error) {
	for name := range params {
		if remedy := misnamed[name]; remedy != "" {
			return nil, badURL("the agent does not know its parameter "+name, remedy)
		}
	}
	if params["gssencmode"] == "require" {
		return nil, badURL("the agent does not know GSSAPI encryption, which gssencmode=require asks for", "write sslmode=require")
	}
	for _, of := range foreign {
		var left []string
		for name := range params {
			if isForeign(name, of.names) {
				left = append(left, name)
				delete(params, name)
			}
		}
		if len(left) > 0 {
			slices.Sort(left)
			notices = append(notices, "database.url: the agent leaves out "+strings.Join(left, ", ")+": "+of.why)
		}
	}
	return notices, nil
}

func isForeign(name, names string) bool {
	return slices.ContainsFunc(strings.Fields(names), func(of string) bool {
		prefix, all := strings.CutSuffix(of, "*")
		return name == of || all && strings.HasPrefix(name, prefix)
	})
}

// URLNotices returns notices that say which parameters of url the agent leaves out, and why.
func URLNotices(url secret.Text) []string {
	_, notices, err := parseURL(url)
	if err != nil {
		return nil // CheckURL reports that error
	}
	return notices
}
