package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/quintago/webhook-agent/agent/config"
)

// meantCommands has what people type who know other programs, by the command that they type it
// after, and the command lines that do what they mean. Words in capitals stand for what they fill
// in.
var meantCommands = map[string]map[string][]string{
	"webhook-agent": byWord(map[string][]string{
		"delivery event events log logs":      {"deliveries list"},
		"endpoint webhook webhooks":           {"endpoints list"},
		"subscription subscriptions":          {"endpoints list"},
		"replay retry resend redeliver":       {"deliveries replay"},
		"tail follow watch":                   {"deliveries list --follow"},
		"ls list":                             {"endpoints list", "deliveries list"},
		"get describe show inspect":           {"deliveries show EVENT_ID", "endpoints show ENDPOINT_ID"},
		"why explain":                         {"deliveries show EVENT_ID"},
		"delete rm remove del":                {"endpoints remove ENDPOINT_ID"},
		"add create new register":             {"endpoints add"},
		"update edit":                         {"endpoints update ENDPOINT_ID"},
		"enable":                              {"endpoints enable ENDPOINT_ID"},
		"disable":                             {"endpoints disable ENDPOINT_ID"},
		"pause":                               {"replays pause ID", "endpoints disable ENDPOINT_ID"},
		"rotate":                              {"endpoints rotate-secret ENDPOINT_ID"},
		"test ping send":                      {"endpoints test ENDPOINT_ID"},
		"start serve server up agent daemon":  {"run"},
		"doctor diagnose verify":              {"check"},
		"health info ps stat stats":           {"status"},
		"migration migrations schema install": {"migrate"},
		"ui web dashboard":                    {"console"},
		"receive receiver":                    {"listen"},
		"configuration":                       {"config"},
		"purge drop deinstall":                {"uninstall"},
		"ver":                                 {"version"},
		"restore failover":                    {"adopt"},
	}),
	"endpoints": byWord(map[string][]string{
		"delete rm del destroy":         {"endpoints remove ENDPOINT_ID"},
		"ls all":                        {"endpoints list"},
		"get describe info view":        {"endpoints show ENDPOINT_ID"},
		"create new register insert":    {"endpoints add"},
		"edit set change modify patch":  {"endpoints update ENDPOINT_ID"},
		"activate resume on":            {"endpoints enable ENDPOINT_ID"},
		"deactivate pause stop off":     {"endpoints disable ENDPOINT_ID"},
		"rotate secret":                 {"endpoints rotate-secret ENDPOINT_ID"},
		"ping send try":                 {"endpoints test ENDPOINT_ID"},
		"retry resend replay redeliver": {"deliveries replay --endpoint ENDPOINT_ID"},
		"log logs deliveries events":    {"deliveries list --endpoint ENDPOINT_ID"},
	}),
	"deliveries": byWord(map[string][]string{
		"ls log logs all search find":             {"deliveries list"},
		"get describe info view explain why":      {"deliveries show EVENT_ID"},
		"retry resend redeliver send again start": {"deliveries replay"},
		"tail follow watch":                       {"deliveries list --follow"},
		"cancel stop":                             {"replays cancel ID"},
	}),
	"replays": byWord(map[string][]string{
		"ls all":                         {"replays list"},
		"get describe info view status":  {"replays show ID"},
		"delete rm remove del stop kill": {"replays cancel ID"},
		"create start new add run retry": {"deliveries replay"},
		"continue unpause":               {"replays resume ID"},
		"rate speed limit":               {"replays pace ID"},
	}),
}

// byWord divides keys of several words.
func byWord(lines map[string][]string) map[string][]string {
	words := map[string][]string{}
	for key, commands := range lines {
		for _, word := range strings.Fields(key) {
			words[word] = commands
		}
	}
	return words
}

// subcommandRequired returns an error for a word that is not the name of a command, with the
// command that is meant.
func subcommandRequired(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if meant := meantCommand(cmd, args); len(meant) > 0 {
		hint = "; did you mean " + strings.Join(meant, " or ") + "?"
	}
	return usagef(cmd, "unknown command %s%s", config.Quoted(args[0]), hint)
}

// meantCommand returns what a person may have meant by args, whose first word is no command of cmd.
func meantCommand(cmd *cobra.Command, args []string) (lines []string) {
	if lines := meantVerb(cmd, args); len(lines) > 0 {
		return lines
	}
	for _, line := range meantCommands[cmd.Name()][strings.ToLower(args[0])] {
		words := strings.Fields(line)
		found, _, err := cmd.Root().Find(words)
		if err != nil || found == cmd.Root() || found.HasSubCommands() && len(words) > 1 {
			continue // this program does not have it
		}
		lines = append(lines, cmd.Root().Name()+" "+line)
	}
	if len(lines) > 0 {
		return lines
	}
	cmd.SuggestionsMinimumDistance = 2
	return cmd.SuggestionsFor(args[0])
}

// meantVerb returns what a person may have meant by a noun that is not quite right and a verb:
// delivery show, endpoint rm, webhook add. It returns nil where these are none.
func meantVerb(cmd *cobra.Command, args []string) (lines []string) {
	if len(args) < 2 {
		return nil
	}
	for _, noun := range cmd.Commands() {
		if !noun.HasSubCommands() || !nounOf(args[0], noun.Name()) {
			continue
		}
		if verb, rest, err := noun.Find(args[1:2]); err == nil && verb != noun && len(rest) == 0 {
			return []string{cmd.Root().Name() + " " + noun.Name() + " " + strings.Join(args[1:], " ")}
		}
		for _, line := range meantCommands[noun.Name()][strings.ToLower(args[1])] {
			lines = append(lines, cmd.Root().Name()+" "+line)
		}
	}
	return lines
}

// nounOf reports whether word is the singular of a noun, delivery of deliveries, or another word
// for it.
func nounOf(word, noun string) bool {
	word = strings.ToLower(word)
	if word+"s" == noun || strings.TrimSuffix(word, "y")+"ies" == noun {
		return true
	}
	meant := meantCommands["webhook-agent"][word]
	return len(meant) == 1 && meant[0] == noun+" list"
}

// refuseUnknownWords makes the commands that cobra adds to root refuse what they do not know: they
// would print a help that nobody has asked for, and succeed.
func refuseUnknownWords(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Args = func(_ *cobra.Command, args []string) error {
				found, rest, err := root.Find(args)
				if err != nil || len(rest) == 0 {
					return err
				}
				return subcommandRequired(found, rest)
			}
		case "completion":
			cmd.Args, cmd.RunE = subcommandRequired, showHelp
		}
	}
}

// meantFlags has the flags of other programs, and ours.
var meantFlags = map[string]string{
	"from": "since", "after": "since", "start": "since", "to": "until", "end": "until", "output": "json", "format": "json", "o": "json",
	"n": "limit", "max": "limit", "count": "limit", "tail": "limit", "state": "status", "tenant": "venue", "id": "endpoint", "wide": "no-trunc",
	"jsonl": "ndjson", "every": "interval", "colour": "color", "events": "type", "forward": "forward-to", "target": "forward-to", "port": "addr", "listen": "addr", "dryrun": "dry-run", "rate": "per-second", "v": "version",
}

// badFlag makes one sentence of what is wrong with a flag.
func badFlag(cmd *cobra.Command, err error) error {
	if words := cmd.Flags().Args(); cmd.HasSubCommands() && len(words) > 0 { // delivery --since 1h: the flag is right
		return subcommandRequired(cmd, words)
	}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		return unknownFlag(cmd, unknown)
	}
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		flag := invalid.GetFlag()
		kinds := map[string]string{"int": "a whole number", "bool": "true or false, or without a value"}
		if kind := kinds[flag.Value.Type()]; kind != "" {
			return usagef(cmd, "--%s is %s, must be %s", flag.Name, config.Quoted(invalid.GetValue()), kind)
		}
	}
	if missing, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return usagef(cmd, "--%s needs a value", missing.GetFlag().Name)
	}
	return usagef(cmd, "%v", err)
}

// unknownFlag names the flag that is meant, if one is like it.
func unknownFlag(cmd *cobra.Command, unknown *pflag.NotExistError) error {
	name, written := unknown.GetSpecifiedName(), "--"+unknown.GetSpecifiedName()
	if unknown.GetSpecifiedShortnames() != "" {
		written = "-" + name
	}
	known := map[string]bool{}
	cmd.Flags().VisitAll(func(f *pflag.Flag) { known[f.Name] = !f.Hidden })
	meant := meantFlags[name]
	if !known[meant] {
		if meant = ""; len(name) > 1 {
			meant = config.Nearest(name, slices.Sorted(maps.Keys(known)))
		}
	}
	hint := ""
	if known[meant] {
		hint = fmt.Sprintf("; did you mean --%s?", meant)
	}
	return usagef(cmd, "unknown flag %s%s", config.Quoted(written), hint)
}
