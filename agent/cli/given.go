package cli

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
)

// mayBeEmpty are the flags whose empty value means what it says.
var mayBeEmpty = []string{"description", "config"}

// flagChecks has what the values of flags must be, by the names that several commands use.
var flagChecks = map[string]func(value string) error{
	"venue": func(value string) error {
		if strings.Contains(value, ellipsis) {
			return errCut
		}
		return outbox.CheckVenue(value)
	},
	"endpoint": func(value string) error { return checkID(kindEndpoint, value) },
	"after":    func(value string) error { return checkID(kindEndpoint, value) },
	"addr":     checkAddress,
	"type": func(value string) error {
		if _, err := outbox.ParsePatterns([]string{value}); err != nil {
			return fmt.Errorf("is %s, which is no event type; use one such as lead.created, lead.* or *", config.Quoted(value))
		}
		return nil
	},
	"per-second": func(value string) error {
		if n, err := strconv.Atoi(value); err != nil || n < 0 || n > outbox.MaxPerSecond {
			return fmt.Errorf("is %s, must be between 0 and %d", value, outbox.MaxPerSecond)
		}
		return nil
	},
}

// checkGiven refuses what no command can work with: a flag with an empty value, which is that of a
// shell variable that is not set and would be as if the flag were not there, what PostgreSQL cannot
// hold, and what cannot be the id of anything.
func (a *app) checkGiven(cmd *cobra.Command, args []string) (err error) {
	if !slices.Contains(colorModes, a.color) {
		return usagef(cmd, "--color is %s, must be %s", config.Quoted(a.color), strings.Join(colorModes, " or "))
	}
	for i, arg := range args {
		wrong := outbox.CheckText(arg)
		if wrong == nil {
			wrong = checkID(argumentKind(cmd, i), arg)
		}
		if wrong != nil {
			return usagef(cmd, "argument %d %v", i+1, wrong)
		}
	}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if err == nil {
			err = checkFlag(cmd, f)
		}
	})
	return err
}

func checkFlag(cmd *cobra.Command, f *pflag.Flag) error {
	value := f.Value.String()
	wrong := outbox.CheckText(value)
	switch {
	case f.Name == "config": // the name of a file may be any bytes
		return nil
	case wrong != nil:
		return usagef(cmd, "--%s %v", f.Name, wrong)
	case (value == "" || value == "[]") && !slices.Contains(mayBeEmpty, f.Name):
		return usagef(cmd, "--%s is empty; give it a value, or leave it out", f.Name)
	}
	if check := flagChecks[f.Name]; check != nil {
		if wrong := check(value); wrong != nil {
			return usagef(cmd, "--%s %v", f.Name, wrong)
		}
	}
	return nil
}

func checkAddress(value string) error {
	_, port, err := net.SplitHostPort(value)
	if n, notNumber := strconv.ParseUint(port, 10, 16); err != nil || notNumber != nil || n > 65535 {
		return fmt.Errorf("is %s, must be an address with a port, like 127.0.0.1:9000", config.Quoted(value))
	}
	return nil
}

// kind is what an id is one of.
type kind string

const (
	kindNone     kind = ""
	kindEvent    kind = "event"
	kindEndpoint kind = "endpoint"
	kindReplay   kind = "replay"
)

func (k kind) withArticle() string {
	if k == kindReplay {
		return "a replay"
	}
	return "an " + string(k)
}

// argumentKind returns what the argument of a command at a place is the id of, by the line that
// shows how the command is used.
func argumentKind(cmd *cobra.Command, place int) kind {
	words := strings.Fields(cmd.Use)[1:]
	if len(words) == 0 {
		return kindNone
	}
	switch word := words[min(place, len(words)-1)]; {
	case strings.Contains(word, "EVENT"):
		return kindEvent
	case strings.Contains(word, "ENDPOINT"):
		return kindEndpoint
	case cmd.HasParent() && cmd.Parent().Name() == "replays":
		return kindReplay
	}
	return kindNone
}

// madeID matches an id that webhooks.new_id made, and so surely what it is one of. An app may give
// its events and endpoints other ids.
var madeID = regexp.MustCompile(`^(evt|ep|rpl)_[0-7][0-9A-HJKMNP-TV-Z]{25}$`)

var madeKinds = map[string]kind{"evt": kindEvent, "ep": kindEndpoint, "rpl": kindReplay}

// errCut is about an id or a venue that was copied out of a table.
var errCut = errors.New("was cut to the width of a terminal (" + ellipsis + "); list with --no-trunc, which shows it whole")

// checkID returns an error for a text that cannot be the id of what a command asks for.
func checkID(wanted kind, id string) error {
	if wanted == kindNone {
		return nil
	}
	switch made := madeID.FindStringSubmatch(id); {
	case strings.TrimSpace(id) == "":
		return fmt.Errorf("is blank; write the id of the %s", wanted)
	case strings.Contains(id, ellipsis):
		return errCut
	case strings.TrimSpace(id) != id || strings.ContainsFunc(id, unicode.IsControl):
		return errors.New("begins or ends with a blank, or has an invisible character; remove it")
	case len(made) > 0 && madeKinds[made[1]] != wanted:
		return fmt.Errorf("is the id of %s; write that of %s", madeKinds[made[1]].withArticle(), wanted.withArticle())
	}
	return nil
}
