package cli

import (
	"context"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/quintago/webhook-agent/agent/manage"
	"github.com/quintago/webhook-agent/outbox"
	"github.com/quintago/webhook-agent/sink"
)

// completionTimeout is how long a person who presses TAB waits at most, also where the database is
// away. A test may make it longer.
var completionTimeout = time.Second

const (
	// completedRows bounds what one key press reads, and completedEvents the events that are
	// offered.
	completedRows, completedEvents = 200, 50
)

// completed are the candidates for a word, each with a description that may be empty.
type completed struct{ word, about string }

// completer finds the candidates for a word that begins with prefix. It may return others as well.
type completer func(ctx context.Context, db *outbox.DB, cmd *cobra.Command, prefix string) ([]completed, error)

// complete makes every command below cmd complete ids and the values of flags.
func (a *app) complete(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		a.complete(sub)
	}
	if strings.ContainsRune(cmd.Use, ' ') && cmd.ValidArgsFunction == nil {
		cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
			ids := completers[argumentKind(cmd, len(args))]
			if ids == nil || cmd.ValidateArgs(append(slices.Clone(args), word)) != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.fromDatabase(cmd, ids, "", word, args)
		}
	}
	if !cmd.HasSubCommands() && cmd.ValidArgsFunction == nil {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if complete := a.flagCompletion(cmd, f); complete != nil {
			_ = cmd.RegisterFlagCompletionFunc(f.Name, complete) // fails only where the command has its own
		}
	})
}

// flagCompletion returns what completes the value of a flag, nil where nothing does.
func (a *app) flagCompletion(cmd *cobra.Command, f *pflag.Flag) cobra.CompletionFunc {
	list := f.Value.Type() == "stringSlice"
	if words := flagWords(cmd, f); words != nil {
		return func(_ *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
			head, last, given := dividedList(word, list)
			return offered(words, head, last, given), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		}
	}
	find := flagCompleters[f.Name]
	if find == nil {
		return nil
	}
	return func(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		head, last, given := dividedList(word, list)
		return a.fromDatabase(cmd, find, head, last, given)
	}
}

// flagWords returns the values of a flag that has few of them, or of which some are good examples.
func flagWords(cmd *cobra.Command, f *pflag.Flag) (words []completed) {
	word := func(w string) { words = append(words, completed{word: w}) }
	switch f.Name {
	case "color":
		each(colorModes, word)
	case "scope":
		each([]string{"read", "manage"}, word)
	case "status":
		statuses := deliveryStatuses
		if cmd.Name() == "replay" {
			statuses = manage.ReplayStatuses
		}
		if f.Value.Type() == "stringSlice" {
			each(statuses, func(s outbox.Status) { word(string(s)) })
		}
	case "state":
		states := endpointStates
		if cmd.Parent().Name() == "replays" {
			states = replayStates
		}
		each(states, word)
	case "since", "until":
		each([]string{"1h", "24h", "2w", "today", "yesterday"}, word)
	case "interval":
		each([]string{"1s", "2s", "5s", "1m"}, word)
	}
	return words
}

func each[T any](list []T, do func(T)) {
	for _, one := range list {
		do(one)
	}
}

// dividedList divides the value of a flag that takes a list: what stands before the last comma, the
// word behind it, and the words that are given already.
func dividedList(word string, list bool) (head, last string, given []string) {
	end := strings.LastIndexByte(word, ',') + 1
	if !list || end == 0 {
		return "", word, nil
	}
	return word[:end], word[end:], strings.Split(word[:end-1], ",")
}

// offered returns those candidates that begin with prefix and are not given already. A candidate
// that a shell or a terminal could take for something else is left out.
func offered(found []completed, head, prefix string, given []string) (words []cobra.Completion) {
	for _, c := range found {
		strange := strings.ContainsFunc(c.word, unicode.IsSpace) || strings.HasPrefix(c.word, "-") || sink.Printable(c.word) != c.word || c.word == ""
		if strange || !strings.HasPrefix(c.word, prefix) || slices.Contains(given, c.word) {
			continue
		}
		words = append(words, cobra.CompletionWithDesc(head+c.word, sink.Printable(c.about)))
	}
	return words
}

// fromDatabase asks the database for candidates. It is silent where that is not possible: a person
// who presses TAB has not asked for an error.
func (a *app) fromDatabase(cmd *cobra.Command, find completer, head, word string, given []string) ([]cobra.Completion, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	cfg, err := a.load()
	if err != nil {
		return nil, directive
	}
	db, err := outbox.Open(ctx, cfg.OutboxConfig())
	if err != nil {
		return nil, directive
	}
	defer db.Close()
	found, err := find(ctx, db, cmd, word)
	if err != nil {
		return nil, directive
	}
	return offered(found, head, word, given), directive
}

var completers = map[kind]completer{kindEndpoint: completeEndpoints, kindEvent: completeEvents, kindReplay: completeReplays}

var flagCompleters = map[string]completer{
	"endpoint": completeEndpoints, "after": completeEndpoints, "before": completeEvents, "venue": completeVenues,
	"type": completeTypes, "events": completeTypes,
}

// completeEndpoints describes each endpoint by its host, its venue and its state. With --venue it
// has that venue's alone.
func completeEndpoints(ctx context.Context, db *outbox.DB, cmd *cobra.Command, prefix string) (found []completed, err error) {
	filter := outbox.EndpointFilter{After: prefix, Limit: completedRows}
	if flag := cmd.Flag("venue"); flag != nil {
		filter.Venue = flag.Value.String()
	}
	endpoints, err := db.AllVenues().Endpoints(ctx, filter)
	hideURLs(endpoints)
	for _, e := range endpoints {
		about := strings.TrimPrefix(e.URL, "https://") + ", " + e.Venue
		if e.State != outbox.StateEnabled {
			about += ", " + e.State
		}
		found = append(found, completed{e.ID, about})
	}
	return found, err
}

// completeEvents has the newest events of the log.
func completeEvents(ctx context.Context, db *outbox.DB, cmd *cobra.Command, _ string) (found []completed, err error) {
	if cmd.Parent().Name() == "replays" { // its --before is no event
		return nil, nil
	}
	page, err := db.AllVenues().Deliveries(ctx, outbox.DeliveryFilter{Limit: completedRows})
	now := time.Now()
	for _, d := range page.Deliveries {
		if len(found) == completedEvents {
			break
		}
		if len(found) == 0 || found[len(found)-1].word != d.EventID { // those of one event stand together
			found = append(found, completed{d.EventID, d.Type + ", " + d.Venue + ", " + formatAge(d.Created, now)})
		}
	}
	return found, err
}

func completeReplays(ctx context.Context, db *outbox.DB, _ *cobra.Command, _ string) (found []completed, err error) {
	replays, _, err := db.AllVenues().ListReplays(ctx, outbox.ReplayFilter{Limit: completedEvents})
	now := time.Now()
	for _, r := range replays {
		found = append(found, completed{r.ID, r.State + ", " + r.EndpointID + ", " + formatAge(&r.Created, now)})
	}
	return found, err
}

func completeVenues(ctx context.Context, db *outbox.DB, _ *cobra.Command, prefix string) (found []completed, err error) {
	venues, err := db.AllVenues().Venues(ctx, prefix, completedEvents)
	for _, venue := range venues {
		found = append(found, completed{word: venue})
	}
	return found, err
}

// completeTypes has the types of the app's catalogue, and the patterns for each group of them.
func completeTypes(ctx context.Context, db *outbox.DB, _ *cobra.Command, _ string) (found []completed, err error) {
	types, err := db.AllVenues().EventTypes(ctx)
	groups := map[string]bool{}
	for _, t := range types {
		if group, _, ok := strings.Cut(t.Name, "."); ok && !groups[group] {
			groups[group] = true
			found = append(found, completed{group + ".*", "all of " + group})
		}
		found = append(found, completed{t.Name, t.Description})
	}
	return found, err
}
