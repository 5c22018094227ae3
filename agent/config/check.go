package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/net/http/httpguts"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/secret"
	"github.com/quintago/webhook-agent/sink"
)

// minTokenLength is the least number of characters of the admin token: 32 hexadecimal digits are
// 128 bits, which nobody can guess.
const minTokenLength = 32

// Patterns of the names that PostgreSQL accepts, and of host names. PostgreSQL cuts an identifier
// after 63 bytes, so a longer one would name another object. Names of slots have fewer characters
// to choose from:
// https://www.postgresql.org/docs/current/warm-standby.html#STREAMING-REPLICATION-SLOTS-MANIPULATION.
var (
	identifierName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_$]{0,62}$`)
	slotName       = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)
	hostName       = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)
)

// suffixLength is the length of what the agent appends to outbox.publication for the name of its
// second publication.
const suffixLength = len("_endpoints")

// check adds a problem for each value that the agent cannot work with.
func (c *Config) check(p *problemList) {
	if c.Database.URL.IsZero() && p.path == "" {
		p.add("database.url", "is missing, and there is no configuration file; write one by webhook-agent init, or set the environment variable DATABASE_URL to postgres://user:password@host:5432/database")
	} else if c.Database.URL.IsZero() {
		p.add("database.url", "is missing; set it, or the environment variable DATABASE_URL, to postgres://user:password@host:5432/database")
	} else if strings.TrimSpace(c.Database.URL.Reveal()) == "" { // it would be this machine's database
		p.add("database.url", "is blank; set it to postgres://user:password@host:5432/database")
	} else if err := outbox.CheckText(c.Database.URL.Reveal()); err != nil {
		p.add("database.url", "%v", err)
	} else if err := outbox.CheckURL(c.Database.URL); err != nil {
		p.join(err)
	}
	c.Outbox.check(p)
	c.Delivery.check(p)
	c.Network.check(p)
	if _, err := secret.NewKeyring(c.Security.Keys); err != nil {
		p.each("security.keys", err)
	}
	c.Admin.check(p)
	c.checkConsole(p)
	if c.Log.Format != "text" && c.Log.Format != "json" {
		p.add("log.format", "is %s, must be text or json", Quoted(c.Log.Format))
	}
	c.Tracing.check(p)
	c.checkEndpoints(p)
}

func (t *Tracing) check(p *problemList) {
	if t.Endpoint != "" {
		u, err := url.Parse(t.Endpoint)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
			p.add("tracing.endpoint", "must be a URL such as https://collector.example.com:4318")
		case u.User != nil || u.RawQuery != "" || u.Fragment != "":
			p.add("tracing.endpoint", "must have no user, query or fragment; write a password or a token into tracing.headers")
		}
	}
	for i, h := range t.Headers {
		name, value, found := strings.Cut(h.Reveal(), ":")
		if !found || !httpguts.ValidHeaderFieldName(strings.TrimSpace(name)) || !httpguts.ValidHeaderFieldValue(strings.TrimSpace(value)) {
			p.add(fmt.Sprintf("tracing.headers[%d]", i+1), "must be a name and a value, such as Authorization: Bearer TOKEN")
		}
	}
	if !(t.Sample >= 0 && t.Sample <= 1) { // this form also refuses nan
		p.add("tracing.sample", "is %v, must be 0 to 1", t.Sample)
	}
}

func (o *Outbox) check(p *problemList) {
	schema, table, qualified := strings.Cut(o.Table, ".")
	if !qualified || !identifierName.MatchString(schema) || !identifierName.MatchString(table) {
		p.add("outbox.table", "is %s, must be a schema and a table, such as webhooks.outbox", Quoted(o.Table))
	}
	if !identifierName.MatchString(o.Publication) || len(o.Publication) > 63-suffixLength {
		p.add("outbox.publication", "is %s, must be a name of at most %d letters, digits and _", Quoted(o.Publication), 63-suffixLength)
	}
	if !slotName.MatchString(o.Slot) {
		p.add("outbox.slot", "is %s, must be a name of at most 63 lower-case letters, digits and _", Quoted(o.Slot))
	}
	if o.Retention != 0 {
		within(p, "outbox.retention", o.Retention, Day, 3650*Day)
	}
	if len(o.Types) == 0 {
		p.add("outbox.types", "names no event type; use patterns such as lead.created, lead.* or *")
	}
	for i, pattern := range o.Types {
		if _, err := outbox.ParsePatterns([]string{pattern}); err != nil {
			p.add(fmt.Sprintf("outbox.types[%d]", i+1), "is %s, must be an event type such as lead.created, lead.* or *", Quoted(pattern))
		}
	}
	if strings.ContainsFunc(o.TimeZone, unicode.IsControl) || len(o.TimeZone) > 63 {
		p.add("outbox.time_zone", "is %s, must be the name of a time zone, such as America/Sao_Paulo", Quoted(o.TimeZone))
	}
	columns := map[string]string{} // column name to the key that has it
	for _, column := range []struct{ key, name string }{
		{"id", o.Columns.ID}, {"type", o.Columns.Type}, {"venue", o.Columns.Venue}, {"data", o.Columns.Data}, {"created", o.Columns.Created},
		{"traceparent", o.Columns.Traceparent},
	} {
		if column.key == "traceparent" && column.name == "" {
			continue // it is optional
		}
		key := "outbox.columns." + column.key
		if !identifierName.MatchString(column.name) {
			p.add(key, "is %s, must be the name of a column of at most 63 letters, digits and _", Quoted(column.name))
		} else if other, taken := columns[column.name]; taken {
			p.add(key, "is %s, which is %s already", Quoted(column.name), other)
		}
		columns[column.name] = key
	}
}

func (d *Delivery) check(p *problemList) {
	within(p, "delivery.timeout", d.Timeout, time.Second, time.Minute)
	if len(d.Retries) > 20 {
		p.add("delivery.retries", "has %d waits, must have at most 20", len(d.Retries))
	}
	within(p, "delivery.disable_after", d.DisableAfter, 1, 10_000)
	within(p, "delivery.failing_interval", d.FailingInterval, 0, time.Hour)
	within(p, "delivery.concurrency", d.Concurrency, 1, 10_000)
	within(p, "delivery.endpoint_concurrency", d.EndpointConcurrency, 1, 1_000)
	within(p, "delivery.shutdown_timeout", d.ShutdownTimeout, 0, 10*time.Minute)
	within(p, "delivery.max_body", d.MaxBody, 1<<10, 128<<20)
	within(p, "delivery.queue_memory", d.QueueMemory, 1<<20, 64<<30)
}

// check uses the address guard itself, so that this check and the dialer cannot disagree.
func (n *Network) check(p *problemList) {
	if _, err := n.Checker(); err != nil {
		p.join(err)
	}
}

// Checker returns a Webhook that only checks URLs and networks. It must not be used to send. The
// caller closes it.
func (n *Network) Checker() (*sink.Webhook, error) {
	return sink.NewWebhook(sink.WebhookConfig{
		Version: "none", Timeout: time.Second, AllowHTTP: n.AllowHTTP, AllowNetworks: n.AllowNetworks, MaxIdlePerHost: 1,
	})
}

// proxyVariables are the environment variables by which other programs find their proxy.
var proxyVariables = []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"}

// warnings returns a sentence for each setting that is allowed but may surprise.
func (c *Config) warnings(getenv func(string) string) (warnings []string) {
	warnings = outbox.URLNotices(c.Database.URL)
	for _, p := range c.Network.AllowNetworks {
		if p.Bits() == 0 {
			warnings = append(warnings, fmt.Sprintf("network.allow_networks holds %s: customers' URLs may lead to every address of your networks but link-local and metadata ones", p))
		}
	}
	for _, name := range proxyVariables {
		if getenv(name) != "" {
			warnings = append(warnings, fmt.Sprintf("the environment variable %s is ignored: behind a proxy nobody would see which address a customer's URL leads to", name))
		}
	}
	return warnings
}

// splitListen returns the host of an address to listen at. An error is reported for key.
func splitListen(p *problemList, key, listen, example string) (host string, ok bool) {
	host, port, err := net.SplitHostPort(listen)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		p.add(key, "is %s, must be an address and a port, such as %s", Quoted(listen), example)
	}
	return host, err == nil
}

func (a *Admin) check(p *problemList) {
	host, ok := splitListen(p, "admin.listen", a.Listen, "127.0.0.1:8480")
	if !ok {
		return
	}
	addr, _ := netip.ParseAddr(host) // a host name gives the zero Addr, which is not loopback
	if !addr.IsLoopback() && host != "localhost" && a.Token.IsZero() {
		p.add("admin.listen", "is %s, which others can reach, but admin.token is not set; set a token or listen on 127.0.0.1", Quoted(a.Listen))
	}
	for i, host := range a.Hosts {
		if !hostName.MatchString(host) {
			p.add(fmt.Sprintf("admin.hosts[%d]", i+1), "is %s, must be a host name without a port, such as agent.internal", Quoted(host))
		}
	}
	if n := len(a.Token.Reveal()); n > 0 && n < minTokenLength {
		p.add("admin.token", "has %d characters, must have at least %d; make one with: openssl rand -hex 32", n, minTokenLength)
	}
}

func (c *Config) checkConsole(p *problemList) {
	keys, err := access.NewKeys(c.Console.Keys)
	if err != nil {
		p.each("console.keys", err)
	}
	for i, key := range c.Console.Keys {
		if !c.Admin.Token.IsZero() && key.Equal(c.Admin.Token) {
			p.add("console.keys", "key %d is admin.token as well; the app would hold the operator's token: make another one", i+1)
		}
	}
	if c.Console.Listen != "" {
		_, _ = splitListen(p, "console.listen", c.Console.Listen, "0.0.0.0:8481")
		if err == nil && keys.Empty() {
			p.add("console.listen", "is set, but console.keys is empty, so nobody could use it; set a key that the app signs tokens with")
		}
		if c.Console.Listen == c.Admin.Listen {
			p.add("console.listen", "is %s, which is admin.listen as well; choose another port", Quoted(c.Console.Listen))
		}
	}
	if c.Console.URL != "" {
		if _, ok := consoleHost(c.Console.URL); !ok {
			p.add("console.url", "is %s, must be an origin without a path, such as https://webhooks.example.com", Quoted(c.Console.URL))
		}
	}
	if err == nil && keys.Empty() && len(c.Console.Origins) > 0 {
		p.add("console.origins", "is set, but console.keys is empty, so no page could open a session; set a key that the app signs tokens with")
	}
	c.Console.checkSessions(p)
}

// checkSessions checks who may open sessions, and how long they last.
func (c *Console) checkSessions(p *problemList) {
	for i, origin := range c.Origins {
		if err := checkOrigin(origin); err != nil {
			p.add(fmt.Sprintf("console.origins[%d]", i+1), "is %s, %v", Quoted(origin), err)
		}
	}
	if len(c.Origins) > maxOrigins {
		p.add("console.origins", "has %d origins, must have at most %d", len(c.Origins), maxOrigins)
	}
	within(p, "console.session", c.Session, time.Minute, access.LongestSession)
}

// maxOrigins bounds console.origins: all of them are in a header of each page.
const maxOrigins = 20

// checkOrigin returns an error for what is no origin of a page, in the spelling of browsers, that may
// be trusted with a session: one of https, or of this machine. A browser compares it byte by byte.
func checkOrigin(origin string) error {
	u, err := url.Parse(origin)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return errors.New("must be an origin, such as https://app.example.com")
	}
	name := u.Hostname()
	_, notAddr := netip.ParseAddr(name)
	standard := map[string]string{"https": "443", "http": "80"}[u.Scheme]
	number, badPort := strconv.ParseUint(cmp.Or(u.Port(), standard), 10, 16)
	switch {
	case u.Scheme != "https" && (u.Scheme != "http" || name != "localhost" && name != "127.0.0.1"):
		return errors.New("must begin with https://; http:// is for localhost and 127.0.0.1 alone, since anybody on the way could change other pages")
	case strings.Contains(origin, "*"):
		return errors.New("is a pattern; write each origin out")
	case notAddr != nil && !hostName.MatchString(name), badPort != nil, number == 0, u.Scheme+"://"+u.Host != origin:
		return errors.New("must be an origin without a path, such as https://app.example.com")
	case strings.ToLower(origin) != origin, u.Port() == standard, strings.HasSuffix(u.Host, ":"), u.Port() != "" && u.Port() != strconv.FormatUint(number, 10):
		return errors.New("is not spelled as a browser does: in small letters, and without the port that the scheme has anyway")
	}
	return nil
}

// consoleHost returns the host name of console.url, without a port.
func consoleHost(origin string) (host string, ok bool) {
	u, err := url.Parse(origin)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || !hostName.MatchString(u.Hostname()) ||
		u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.ForceQuery {
		return "", false
	}
	return u.Hostname(), true
}

// Hosts returns the host names by which requests may name the listener, beside its address.
func (c *Console) Hosts() []string {
	if host, ok := consoleHost(c.URL); ok {
		return []string{host}
	}
	return nil
}

func (c *Config) checkEndpoints(p *problemList) {
	if len(c.Endpoints) == 0 {
		return
	}
	webhook, err := c.Network.Checker()
	if err != nil {
		return // Network.check has reported it
	}
	defer webhook.Close()
	seen := map[string]string{} // venue and URL to the key of the endpoint that has them
	for i, endpoint := range c.Endpoints {
		key := fmt.Sprintf("endpoint[%d]", i+1)
		if endpoint.Venue == "" {
			p.add(key+".venue", "is missing")
		} else if err := outbox.CheckVenue(endpoint.Venue); err != nil {
			p.add(key+".venue", "%v", err)
		}
		if err := outbox.CheckText(endpoint.Description); err != nil {
			p.add(key+".description", "%v", err)
		}
		if err := webhook.CheckURL(endpoint.URL.Reveal()); err != nil {
			p.add(key+".url", "%v", err)
		}
		if _, err := outbox.ParsePatterns(endpoint.Events); err != nil {
			p.add(key+".events", "%v", err)
		}
		if err := sink.CheckSecret(endpoint.Secret); err != nil {
			p.add(key+".secret", "%v", err)
		}
		identity := endpoint.Venue + " " + endpoint.URL.Reveal()
		if other, taken := seen[identity]; taken {
			p.add(key, "has the venue and the url of %s; keep one of them", other)
		}
		seen[identity] = key
	}
}

// problemList collects what is wrong with a configuration.
type problemList struct {
	problems []Problem
	path     string            // the file; "" when there is none
	sources  map[string]string // a key that is set to the file, the variable or the flag that sets it
	// unreadable are the keys whose value could not be read. That is reported already, so a second
	// sentence that the value is missing would only confuse.
	unreadable map[string]bool
}

// addTo adds a sentence about what a person calls source.
func (p *problemList) addTo(source, sentence string) {
	p.problems = append(p.problems, Problem{source, sentence})
}

// add adds a sentence about a key, or about one item of its list, such as outbox.types[1]. If a
// variable or a flag has set the key, the sentence is about that.
func (p *problemList) add(key, format string, args ...any) {
	if p.unreadable[key] {
		return
	}
	sentence := fmt.Sprintf(format, args...)
	name, _, _ := strings.Cut(key, "[")
	if source := p.sources[name]; source != "" && source != p.path {
		p.addTo(source+strings.TrimPrefix(key, name), sentence)
		return
	}
	p.addTo(p.path, key+": "+sentence)
}

// each adds the sentences of err, one from each line, about a key.
func (p *problemList) each(key string, err error) {
	for sentence := range strings.Lines(err.Error()) {
		p.add(key, "%s", strings.TrimSpace(sentence))
	}
}

// join adds the sentences of err, one from each line. They begin with their keys, if they have one.
func (p *problemList) join(err error) {
	for sentence := range strings.Lines(err.Error()) {
		if key, said, found := strings.Cut(strings.TrimSpace(sentence), ": "); found {
			p.add(key, "%s", said)
		} else {
			p.addTo(p.path, key)
		}
	}
}

// within adds a problem when a value is not between two bounds. Both bounds are allowed.
func within[T cmp.Ordered](p *problemList, key string, value, least, most T) {
	if value < least || value > most {
		p.add(key, "is %s, must be between %s and %s", rangeText(value), rangeText(least), rangeText(most))
	}
}

// rangeText formats a bound of within as the file would have it.
func rangeText(v any) string {
	if d, ok := v.(time.Duration); ok {
		return FormatDuration(d)
	}
	return fmt.Sprint(v)
}
