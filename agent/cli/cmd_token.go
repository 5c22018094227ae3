package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/access"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
)

// mintedToken is the answer of the command token.
type mintedToken struct {
	Token   string    `json:"token"`
	Venue   string    `json:"venue"`
	Scope   string    `json:"scope"`
	Expires time.Time `json:"expires"`
}

func (a *app) tokenCommand() *cobra.Command {
	var venue, scope, lifeText string
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Print a token of a venue for the HTTP API, for trying out",
		Long: `token prints a token as the app signs one for a venue's own people, with the first shared key of console.keys. Who has it
sees the endpoints, deliveries and replays of that venue, and with the scope manage may change them, until it ends.`,
		Example: `  webhook-agent token --venue venue_01H
  webhook-agent token --venue venue_01H --scope read --life 15m`,
		Args: noArguments,
		PreRunE: func(cmd *cobra.Command, _ []string) (err error) {
			if venue == "" {
				return usagef(cmd, "--venue is required")
			}
			if err := outbox.CheckVenue(venue); err != nil {
				return usagef(cmd, "--venue %v", err)
			}
			if scope != string(access.ScopeRead) && scope != string(access.ScopeManage) {
				return usagef(cmd, "--scope is %s, must be %s or %s", config.Quoted(scope), access.ScopeRead, access.ScopeManage)
			}
			if life, err = config.ParseDuration(lifeText); err != nil || life < time.Second || life > access.LongestToken {
				return usagef(cmd, "--life is %s, must be a duration between 1s and %s", config.Quoted(lifeText), config.FormatDuration(access.LongestToken))
			}
			return nil
		},
		RunE: func(*cobra.Command, []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			now := time.Now()
			token, err := cfg.ConsoleKeys().Mint(venue, access.Scope(scope), life, now)
			if err != nil {
				return fmt.Errorf("no token: %w", err)
			}
			out := a.printer()
			if out.asJSON {
				return out.json(mintedToken{token.Reveal(), venue, scope, now.Add(life).UTC().Truncate(time.Second)})
			}
			out.line("%s", token.Reveal())
			return nil
		},
	}
	cmd.Flags().StringVar(&venue, "venue", "", "the `venue` that the token is for")
	cmd.Flags().StringVar(&scope, "scope", string(access.ScopeManage), "what it allows: `read` or manage")
	cmd.Flags().StringVar(&lifeText, "life", "5m", "how long it lasts, a `duration` of at most 15m")
	return cmd
}
