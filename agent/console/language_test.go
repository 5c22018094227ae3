package console

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template/parse"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/outbox"
)

// textSet is texts that a page may show, by the place that has them.
type textSet map[string]string

// unquote returns the value of a string literal, or of several that a plus joins.
func unquote(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return text, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		a, okA := unquote(e.X)
		b, okB := unquote(e.Y)
		return a + b, okA && okB && e.Op == token.ADD
	case *ast.CallExpr: // fmt.Errorf within a FieldError, for example
		if len(e.Args) > 0 && slices.Contains([]string{"New", "Errorf"}, nameOf(e.Fun)) {
			return unquote(e.Args[0])
		}
	}
	return "", false
}

// nameOf returns the last name of a function or a variable.
func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.IndexExpr:
		return nameOf(e.X)
	}
	return ""
}

// addNode adds the texts of ours that a node of Go has: what is said, errors, problems, and what is
// put where a page shows a text.
func (s textSet) addNode(place string, n ast.Node) {
	add := func(list ...ast.Expr) {
		for _, e := range list {
			if text, ok := unquote(e); ok && text != "" {
				s[text] = place
			}
		}
	}
	shown := []string{"Reason", "Remedy", "Unquoted", "Problem", "Refused", "Errors", "doneTexts", "words", "reason", "remedy", "unquoted"}
	switch n := n.(type) {
	case *ast.CallExpr:
		switch name := nameOf(n.Fun); {
		case slices.Contains([]string{"say", "count", "sentence", "refuse"}, name):
			add(n.Args...)
		case slices.Contains([]string{"New", "Errorf"}, name) && len(n.Args) > 0:
			add(n.Args[0])
		case name == "verdict" && len(n.Args) > 1: // of outbox/explain_event.go
			add(n.Args[1])
		case name == "orElse":
			add(n.Args[1])
		}
	case *ast.KeyValueExpr:
		if slices.Contains(shown, nameOf(n.Key)) {
			add(n.Value)
		}
	case *ast.AssignStmt:
		for i, left := range n.Lhs {
			if i < len(n.Rhs) && slices.Contains(append(shown, "now"), nameOf(left)) {
				s.addValue(n.Rhs[i], add)
			}
		}
	case *ast.ValueSpec:
		for i, name := range n.Names {
			if i < len(n.Values) && slices.Contains(shown, name.Name) {
				s.addValue(n.Values[i], add)
			}
		}
	}
}

// addValue adds a text, or the values of a map of texts.
func (textSet) addValue(value ast.Expr, add func(...ast.Expr)) {
	add(value)
	if literal, ok := value.(*ast.CompositeLit); ok {
		for _, e := range literal.Elts {
			if pair, ok := e.(*ast.KeyValueExpr); ok {
				add(pair.Value)
			}
		}
	}
}

// goTexts returns the texts of Go files.
func goTexts(t *testing.T, patterns ...string) textSet {
	t.Helper()
	s := textSet{}
	for _, pattern := range patterns {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("there is no file %s (%v)", pattern, err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			fileSet := token.NewFileSet()
			file, err := parser.ParseFile(fileSet, name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if n != nil {
					s.addNode(fileSet.Position(n.Pos()).String(), n)
				}
				return true
			})
		}
	}
	return s
}

// templateTexts returns the texts of the templates: the first string that each call of t, count or
// sentence has, and for count the second.
func templateTexts(t *testing.T) textSet {
	t.Helper()
	s := textSet{}
	all, err := allTemplates()
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range all.byLanguage[languages[0]] {
		for _, tmpl := range page.Templates() {
			if tmpl.Tree != nil {
				s.addTemplate(tmpl.Name(), tmpl.Tree.Root)
			}
		}
	}
	return s
}

func (s textSet) addTemplate(place string, n parse.Node) {
	branch := func(b parse.BranchNode) {
		s.addTemplate(place, b.Pipe)
		s.addTemplate(place, b.List)
		if b.ElseList != nil {
			s.addTemplate(place, b.ElseList)
		}
	}
	switch n := n.(type) {
	case *parse.ListNode:
		for _, child := range n.Nodes {
			s.addTemplate(place, child)
		}
	case *parse.IfNode:
		branch(n.BranchNode)
	case *parse.WithNode:
		branch(n.BranchNode)
	case *parse.RangeNode:
		branch(n.BranchNode)
	case *parse.ActionNode:
		s.addTemplate(place, n.Pipe)
	case *parse.TemplateNode:
		if n.Pipe != nil {
			s.addTemplate(place, n.Pipe)
		}
	case *parse.PipeNode:
		for _, command := range n.Cmds {
			s.addTemplate(place, command)
		}
	case *parse.CommandNode:
		name, _ := n.Args[0].(*parse.IdentifierNode)
		for i, argument := range n.Args[1:] {
			text, isText := argument.(*parse.StringNode)
			if isText && name != nil && (name.Ident == "count" || i == 0 && slices.Contains([]string{"t", "sentence"}, name.Ident)) {
				s[text.Text] = place
			}
			s.addTemplate(place, argument)
		}
	}
}

// unshown are texts of this package that no page shows: they are for the log, or for who changes it.
var unshown = []string{
	"%v is no name", "there is no static file %s",
	"the link was used, or has ended", "the token is a venue's", "there were too many attempts", "the page that asks is not of an origin in console.origins",
}

// foreignFiles have texts that pages show besides: what is wrong with a field, a verdict, a remedy.
var foreignFiles = []string{"../../sink/url.go", "../../outbox/pattern.go", "../../outbox/explain_event.go", "../manage/*.go"}

// unsaid are texts of foreignFiles that no page shows: they are replaced, or stay within a log.
var unsaid = []string{
	"endpoint %s: %w", "managed by the configuration file", "change its [[endpoint]] there and restart the agent",
	"webhook-agent deliveries list shows the newest; what is older than outbox.retention is deleted",
}

// otherFiles have more texts that pages show, and many that they do not.
var otherFiles = []string{
	"../../outbox/endpoints.go", "../../outbox/replays.go", "../../outbox/deliveries.go", "../../outbox/cursor.go", "../../outbox/query.go", "../../outbox/idempotency.go",
	"../../outbox/problem.go", "../../outbox/view.go", "../../outbox/replay_job.go", "../../outbox/replay_pick.go", "../api/problem.go", "../lanes/lanes.go",
}

// numbered returns a text as texts.filledIn looks for it.
func numbered(text string) string {
	return regexp.MustCompile(`%\.0f|%d|[0-9]+`).ReplaceAllString(text, "%d")
}

// literals returns all string literals of Go files.
func literals(t *testing.T, patterns ...string) textSet {
	t.Helper()
	s := textSet{}
	for _, pattern := range patterns {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("there is no file %s (%v)", pattern, err)
		}
		for _, name := range names {
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if e, ok := n.(ast.Expr); ok {
					if text, ok := unquote(e); ok {
						s[text] = name
					}
				}
				return true
			})
		}
	}
	return s
}

// portuguese returns the texts of locales/pt.json.
func portuguese(t *testing.T) map[string]string {
	t.Helper()
	text, err := files.ReadFile("locales/pt.json")
	if err != nil {
		t.Fatal(err)
	}
	var of map[string]string
	if err := json.Unmarshal(text, &of); err != nil {
		t.Fatal(err)
	}
	// A JSON decoder takes the last of two equal keys without a word.
	seen := map[string]bool{}
	for _, line := range strings.Split(string(text), "\n") {
		key, _, ok := strings.Cut(line, `": "`)
		if ok && seen[key] {
			t.Errorf("a key stands twice: %s", key)
		}
		seen[key] = true
	}
	return of
}

func TestPortuguese_HasEachTextOfThePagesAndNoOther(t *testing.T) {
	of := portuguese(t)
	wanted := templateTexts(t)
	maps.Copy(wanted, goTexts(t, "*.go"))
	foreign := goTexts(t, foreignFiles...)
	for text, place := range foreign {
		if strings.Contains(text, "%q") || slices.Contains(unsaid, text) {
			continue
		}
		if _, ok := of[text]; !ok {
			text = numbered(text)
		}
		wanted[text] = place
	}
	for name, text := range words {
		wanted["word:"+name] = "words.go"
		if _, ok := of[text]; !ok {
			delete(wanted, text)
		}
	}
	for _, text := range unshown {
		if wanted[text] == "" {
			t.Errorf("%q is not among the texts any more; take it out of unshown", text)
		}
		delete(wanted, text)
	}
	for _, text := range slices.Sorted(maps.Keys(wanted)) {
		if of[text] == "" {
			t.Errorf("locales/pt.json lacks %q (%s)", text, wanted[text])
		}
	}
	for _, state := range []string{outbox.ReplayDone, string(outbox.Failed), outbox.ReplayCanceled} {
		wanted["it has ended ("+state+")"] = "outbox/replays.go"
	}
	maps.Copy(wanted, literals(t, append(otherFiles, foreignFiles...)...))
	for _, key := range slices.Sorted(maps.Keys(of)) {
		if wanted[key] == "" {
			t.Errorf("locales/pt.json has %q, which nothing shows", key)
		}
	}
}

func TestPortuguese_HasTheVerbsOfEachTextInTheirOrder(t *testing.T) {
	verbs := regexp.MustCompile(`%[a-z.0-9]*[a-z]`)
	for key, text := range portuguese(t) {
		if want, got := verbs.FindAllString(key, -1), verbs.FindAllString(text, -1); !slices.Equal(got, want) {
			t.Errorf("%q has the verbs %q, its text %q has %q", key, want, text, got)
		}
	}
}

func TestWords_HasEachStateVerdictAndClass(t *testing.T) {
	constants := regexp.MustCompile(`(?m)^\t(?:Class|State|Verdict|Replay)[A-Za-z0-9]+ *(?:Class)? *= "([a-z0-9_]+)"`)
	found := 0
	for _, name := range []string{"../../sink/classify.go", "../../outbox/endpoints.go", "../../outbox/explain_event.go", "../../outbox/replays.go"} {
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range constants.FindAllStringSubmatch(string(source), -1) {
			found++
			if words[match[1]] == "" {
				t.Errorf("%s has the word %s, which the pages cannot say", name, match[1])
			}
		}
	}
	if found < 35 {
		t.Fatalf("only %d words were found", found)
	}
	for _, status := range statuses {
		if words[string(status)] == "" {
			t.Errorf("the pages cannot say the status %s", status)
		}
	}
	if got := (&texts{}).word("of_tomorrow"); got != "of tomorrow" {
		t.Errorf("a word that is not known is shown as %q", got)
	}
}

func TestLanguage_IsChosenByTheCookieThenByTheBrowser(t *testing.T) {
	for _, test := range []struct{ cookie, accept, want string }{
		{"", "", "en"},
		{"", "pt-PT,pt;q=0.9,en;q=0.8", "pt"},
		{"", "pt", "pt"},
		{"", "PT-br", "pt"},
		{"", "de-DE,de;q=0.9,pt;q=0.5,en;q=0.3", "pt"},
		{"", "en-GB,pt;q=0.5", "en"},
		{"", "de, fr", "en"},
		{"", "*", "en"},
		{"", ";;,,-", "en"},
		{"", "ptx, en", "en"},
		{"pt", "en", "pt"},
		{"en", "pt", "en"},
		{"de", "pt", "pt"},
		{"", " pt ; q=0.1", "pt"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/console/", nil)
		r.Header.Set("Accept-Language", test.accept)
		if test.cookie != "" {
			r.AddCookie(&http.Cookie{Name: languageCookie, Value: test.cookie})
		}
		if got := languageOf(r); got != test.want {
			t.Errorf("cookie %q, Accept-Language %q: %s, want %s", test.cookie, test.accept, got, test.want)
		}
	}
}

func TestLanguage_IsKeptByALinkUntilAnotherIsChosen(t *testing.T) {
	s := newSite(t)
	v := s.operator()
	for _, step := range []struct{ link, want string }{
		{"/endpoints?lang=pt", "pt"}, {"/endpoints?lang=de", "pt"}, {"/endpoints?lang=en", "en"}, {"/endpoints?lang=pt-PT&state=disabled", "pt"},
	} {
		p := v.want(http.StatusSeeOther, step.link)
		if to := p.header.Get("Location"); strings.Contains(to, "lang") {
			t.Errorf("%s leads to %s", step.link, to)
		}
		if p := v.want(http.StatusOK, "/endpoints"); !strings.Contains(p.body, `<html lang="`+step.want+`"`) {
			t.Errorf("after %s the page is not in %s", step.link, step.want)
		}
	}
}

func TestTexts_OfOtherPackagesAreTranslatedWithTheirNumbers(t *testing.T) {
	all, err := allTemplates()
	if err != nil {
		t.Fatal(err)
	}
	pt := all.texts["pt"]
	for _, test := range []struct{ text, want string }{
		{"the URL is longer than 2048 characters", "o URL tem mais de 2048 caracteres"},
		{"the URL's port must be between 1 and 65535", "a porta do URL tem de estar entre 1 e 65535"},
		{"must be between 0s and 7 days", "tem de ser entre 0s e 7 dias"},
		{"100% of 3 things that nobody has said", "100% of 3 things that nobody has said"},
		{"it is unusable, so nothing is sent to it: the URL must begin with https://", "está inutilizável, por isso nada lhe é enviado: o URL tem de começar por https://"},
		{"%d%s", "%d%s"},
	} {
		if got := pt.say(test.text); got != test.want {
			t.Errorf("%q is %q, want %q", test.text, got, test.want)
		}
	}
	why := pt.why(outbox.EndpointVerdict{Format: "it was not sent: %s", Args: []any{"the endpoint is disabled"}})
	if want := "não foi enviado: o endpoint está desativado"; why != want {
		t.Errorf("the verdict is %q, want %q", why, want)
	}
	// A type of an event may be a word of ours.
	why = pt.why(outbox.EndpointVerdict{Format: "outbox.types in the agent's configuration does not ask for %s", Args: []any{"nothing"}})
	if want := "outbox.types, na configuração do agente, não pede nothing"; why != want {
		t.Errorf("the verdict is %q, want %q", why, want)
	}
	if got := pt.decimal(1.5) + " " + all.texts["en"].decimal(1.5); got != "1,5 1.5" {
		t.Errorf("one and a half is %q", got)
	}
}

// english are words that a page in Portuguese has nowhere.
var english = regexp.MustCompile(`(?i)\b(the|is|are|was|were|of|and|with|from|this|that|these|it|its|not|has|have|you|your|by|than|which|what|nothing|attempts?|deliver(?:y|ies|ed)|failed|missed|pending|disabled|enabled|secret|answer|replays?|event|search|created)\b`)

// untranslated are parts of a page that are no text of ours, and marks.
var untranslated = regexp.MustCompile(`(?s)<(code|pre|bdi)\b[^>]*>.*?</(?:code|pre|bdi)>|<(?:span|div|p|dt|dd) class="[^"]*\bid\b[^"]*"[^>]*>.*?</|<a [^>]*lang="en"[^>]*>English</a>|<option[^>]*>[a-z]+\.[a-z_.]+(?:</option>)?|<summary>[a-z]+</summary>`)

// eventTypes are names of events, which no language changes.
var eventTypes = regexp.MustCompile(`[a-z]+\.([a-z_]+|\*)`)

// readable returns the texts of a page that a visitor reads or hears.
func readable(page string) string {
	_, page, _ = strings.Cut(page, "<title>")
	page = untranslated.ReplaceAllString(page, "><")
	var b strings.Builder
	for _, match := range regexp.MustCompile(`(?:aria-label|placeholder|title|data-(?:good|bad|none|copied|word|idle|left|text|meant))="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		b.WriteString(match[1] + "\n")
	}
	b.WriteString(regexp.MustCompile(`(?s)<[^>]*>`).ReplaceAllString(page, "\n"))
	return eventTypes.ReplaceAllString(b.String(), "")
}

func TestPages_InPortugueseHaveNoEnglishLeft(t *testing.T) {
	s := newSite(t)
	first := s.seedVenue("quinta")
	s.env.Exec(t, `update webhooks.endpoint_health set unusable = 'the URL must begin with https://' where endpoint_id = 'ep_quinta_2'`)
	s.env.Exec(t, `insert into webhooks.outbox (id, type, venue, data, created) values ('evt_alone', 'guest.seated', 'quinta', '{}', now()), ('evt_old', 'payment.received', 'quinta', '{}', now() - interval '60 days')`)
	user, operator := s.user("quinta", access.ScopeManage), s.operator()
	stranger := s.browser()
	pages := map[string]reply{}
	look := func(name string, p reply) {
		pages[name] = p
	}
	for _, v := range []struct {
		name string
		*guest
	}{{"user", user}, {"operator", operator}} {
		v.want(http.StatusSeeOther, "/endpoints?lang=pt")
		for _, path := range []string{
			"/endpoints", "/endpoints?state=disabled", "/endpoints?query=none", "/endpoints/new", "/endpoints/" + first, "/endpoints/ep_quinta_2", "/endpoints/ep_quinta_3", "/endpoints/" + first + "/edit",
			"/endpoints/" + first + "/rotate", "/endpoints/" + first + "/disable", "/endpoints/" + first + "/remove", "/deliveries", "/deliveries?status=missed", "/deliveries?type=lead..*", "/deliveries?since=x",
			"/deliveries/evt_quinta_0000/" + first, "/deliveries/evt_quinta_0001/ep_quinta_4", "/deliveries/evt_quinta_0004/ep_quinta_3", "/deliveries/evt_quinta_0010/ep_quinta_2", "/deliveries/evt_quinta_0000/ep_quinta_2",
			"/events/evt_quinta_0000", "/events/evt_quinta_0004", "/events/evt_alone", "/events/evt_old", "/events/none", "/replays", "/replays?before=x", "/replays/new", "/replays/new?endpoint=" + first, "/replays/new?endpoint=ep_quinta_3",
			"/replays/new?endpoint=" + first + "&since=x", "/replays/new?event=evt_quinta_0010", "/replays/rpl_quinta", "/nothing", "/endpoints/none", "/?done=changed",
		} {
			look(v.name+" "+path, v.get(path))
		}
		look(v.name+" posts no endpoint", v.post(v.base+"/endpoints", "url", "http://example.com", "events", "lead..*", "venue", ""))
		look(v.name+" posts a long URL", v.post(v.base+"/endpoints", "url", "https://example.com/"+strings.Repeat("x", 3000), "venue", "quinta"))
		look(v.name+" posts an endpoint", v.post(v.base+"/endpoints", "url", "https://new-"+v.name+".example.com/", "others", "lead.creatd", "venue", "quinta"))
		look(v.name+" posts a pace", v.post(v.base+"/replays/rpl_quinta", "do", "pace", "per_second", "x"))
		look(v.name+" posts a rotation", v.post(v.base+"/endpoints/ep_quinta_4/rotate", "overlap", "1h"))
		look(v.name+" posts a replay", v.post(v.base+"/replays", "endpoint", first, "status", "succeeded", "per_second", "0"))
	}
	look("overview", operator.get("/"))
	reader := s.user("quinta", access.ScopeRead)
	reader.get("/endpoints?lang=pt")
	look("reader", reader.get("/endpoints/new"))
	stranger.get("/signin?lang=pt")
	look("sign in", stranger.get("/signin"))
	look("wrong token", stranger.post("/console/signin", "token", "wrong"))
	look("no token", stranger.post("/console/signin", "token", ""))
	look("expired", stranger.send("GET", "/console/v/quinta/endpoints", nil, "Sec-Fetch-Dest", "iframe"))
	look("session", stranger.post("/console/session", "token", "x"))
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		p := pages[name]
		if p.status == http.StatusSeeOther {
			continue
		}
		if !strings.Contains(p.body, `<html lang="pt"`) {
			t.Errorf("%s (status %d) is not in Portuguese", name, p.status)
			continue
		}
		for line := range strings.SplitSeq(readable(p.body), "\n") {
			if word := english.FindString(line); word != "" {
				t.Errorf("%s (status %d) has %q in %q", name, p.status, word, strings.TrimSpace(line))
			}
		}
	}
}
