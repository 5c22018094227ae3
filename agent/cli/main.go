package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent"
	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
)

// The exit statuses of the program.
const (
	exitFine   = 0
	exitFailed = 1
	exitUsage  = 2 // wrong command line or configuration
)

// The paths of the configuration file when neither --config nor WEBHOOK_AGENT_CONFIG names one.
// There may be none: the environment can say everything.
const (
	localConfigPath  = "webhook-agent.toml"
	systemConfigPath = "/etc/quintago/webhook-agent.toml"
)

// configPaths are looked at in this order. Tests leave out the one that the machine may have.
var configPaths = []string{localConfigPath, systemConfigPath}

// Main runs the command line args, without the program's name, and returns the exit status. When
// ctx is canceled, the command ends; the agent drains first. Answers go to stdout. Logs and errors
// go to stderr; each error is one sentence.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr, getenv: os.Getenv, environ: os.Environ, keyboard: keyboard(stdout)}
	return a.run(ctx, args)
}

// run runs a command line and returns the exit status.
func (a *app) run(ctx context.Context, args []string) int {
	out := &answer{Writer: a.stdout}
	a.stdout = out
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	refuseUnknownWords(root)
	err := root.ExecuteContext(ctx)
	if lost := out.lost(); lost != nil && (err == nil || errors.Is(err, errFindings)) {
		err = lost
	}
	if err == nil {
		return exitFine
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	if !errors.Is(err, errFindings) {
		a.complain(err)
	}
	if _, ok := errors.AsType[*config.Error](err); ok || errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitFailed
}

// complain prints an error, one sentence a line.
func (a *app) complain(err error) {
	out := newPrinter(a.stderr, false)
	for sentence := range strings.Lines(err.Error()) {
		out.line("webhook-agent: %s", strings.TrimSpace(sentence))
	}
}

// errUsage marks an error as one about a wrong command line.
var errUsage = errors.New("bad usage")

// errFindings ends a command with status 1 that has printed on stdout what is wrong.
var errFindings = errors.New("the command has reported what is wrong")

// usageError is a sentence about a wrong command line, and the command whose help explains more.
type usageError struct {
	sentence string
	command  string
}

func (e *usageError) Error() string        { return e.sentence + "; see " + e.command + " --help" }
func (e *usageError) Is(target error) bool { return target == errUsage }

// badValue is an error about the value of a flag that was found while the command ran.
type badValue struct{ error }

func (e badValue) Is(target error) bool { return target == errUsage }
func (e badValue) Unwrap() error        { return e.error }

// usagef returns an error about a wrong command line.
func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...), cmd.CommandPath()}
}

// app has what all commands share: their outputs and the global flags.
type app struct {
	stdout, stderr io.Writer
	getenv         func(string) string
	environ        func() []string
	keyboard       io.Reader // of a person who can be asked; nil without a terminal
	configPath     string    // --config
	databaseURL    string    // --database-url
	secret         string    // --secret, of the commands that have it
	asJSON         bool      // --json
	noTrunc        bool      // --no-trunc
	color          string    // --color
}

// Command returns the command line, for what describes it: manual pages and completions.
func Command() *cobra.Command {
	return (&app{stdout: io.Discard, stderr: io.Discard, getenv: os.Getenv}).rootCommand()
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "webhook-agent",
		Short: "Delivers the events of a PostgreSQL outbox as signed webhooks",
		Long: `webhook-agent streams the events that the QuintaGo app writes into its PostgreSQL outbox and delivers each of them,
signed and with retries, to the endpoints that its venue has registered.`,
		Example: `  webhook-agent check                        what is missing in the database, with the remedy
  webhook-agent migrate                      create or update the schema webhooks
  webhook-agent run                          deliver until interrupted
  webhook-agent status                       where the agent stands
  webhook-agent deliveries list --since 1h   what was sent, and what came of it`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              subcommandRequired,
		RunE:              showHelp,
		PersistentPreRunE: a.checkGiven,
		DisableAutoGenTag: true,
	}
	root.SetFlagErrorFunc(badFlag)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { a.printer().help(cmd) })
	root.PersistentFlags().StringVar(&a.configPath, "config", "",
		"configuration `file` (default $WEBHOOK_AGENT_CONFIG, ./"+localConfigPath+" if it exists, or "+systemConfigPath+")")
	root.PersistentFlags().BoolVar(&a.asJSON, "json", false, "answer in JSON")
	root.PersistentFlags().StringVar(&a.databaseURL, "database-url", "",
		"database `URL` in place of the configured one, for a role that may do more; better as env:NAME or file:/path, since other users of this machine can read a command line")
	root.PersistentFlags().BoolVar(&a.noTrunc, "no-trunc", false, "show all, also what is wider than the terminal")
	root.PersistentFlags().StringVar(&a.color, "color", colorAuto, "colours: `when` is "+strings.Join(colorModes, ", "))
	addVersionFlag(root)
	root.AddCommand(a.runCommand(), a.initCommand(), a.configCommand(), a.checkCommand(), a.migrateCommand(), a.adoptCommand(), a.uninstallCommand(), a.statusCommand(),
		a.endpointsCommand(), a.deliveriesCommand(), a.replaysCommand(), a.tokenCommand(), a.consoleCommand(), a.listenCommand(), a.versionCommand())
	a.complete(root)
	return root
}

func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// exactly requires n arguments. what names them in the sentence.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usagef(cmd, "%s takes %s, got %d arguments", cmd.CommandPath(), what, len(args))
		}
		return nil
	}
}

var noArguments = exactly(0, "no arguments")

func (a *app) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Deliver events until interrupted",
		Long: `run streams the outbox and delivers. The first SIGINT, SIGTERM or SIGHUP lets attempts in flight finish, for at most
delivery.shutdown_timeout, and records them; a further SIGINT or SIGTERM ends at once. Under nohup, SIGHUP is ignored. A second agent
on the same slot waits and takes over when the first is gone.`,
		Example: `  webhook-agent run
  webhook-agent run --config /etc/quintago/webhook-agent.toml`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load() // the log has the notices
			if err != nil {
				return err
			}
			log := config.NewLogger(a.stderr, cfg.Log)
			slog.SetDefault(log) // some libraries know only the standard logger
			return agent.Run(cmd.Context(), agent.Options{
				Config: cfg, Log: log, Version: agentVersion(),
				Endpoints: func(n int) { tuneMemory(cfg.Delivery.QueueMemory, n) },
			})
		},
	}
}

func (a *app) printer() *printer {
	p := newPrinter(a.stdout, a.asJSON)
	p.aside = a.stderr
	p.color = colored(a.color, p.terminal, a.getenv)
	p.noTrunc = a.noTrunc
	p.measure()
	return p
}

// namedPath returns the configuration file that --config or the environment names, and "" for none.
func (a *app) namedPath() string { return cmp.Or(a.configPath, a.getenv(config.PathVariable)) }

// filePath returns the configuration file to read, and "" if there is none. A file that is named
// must be there.
func (a *app) filePath() string {
	if path := a.namedPath(); path != "" {
		return path
	}
	for _, path := range configPaths {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return path // Load says what is wrong with it, if anything
		}
	}
	return ""
}

// load loads the configuration from the flags, the environment and the file.
func (a *app) load() (*config.Config, error) {
	return config.Load(config.Input{Path: a.filePath(), Environ: a.environ(), DatabaseURL: a.databaseURL, Secret: a.secret})
}

// config loads the configuration for a command that a person runs. It says on standard error if
// that names another database than the person may expect.
func (a *app) config() (*config.Config, error) {
	cfg, err := a.load()
	if err == nil && cfg.DatabaseWarning != "" {
		fmt.Fprintln(a.stderr, "webhook-agent: "+cfg.DatabaseWarning)
	}
	return cfg, err
}

// desk is what a command that uses the database works with.
type desk struct {
	cfg      *config.Config
	db       *outbox.DB
	out      *printer
	keyboard io.Reader // as in app
}

// connectTimeout is how long a command waits for the database's first answer.
const connectTimeout = 10 * time.Second

// withDatabase returns a RunE function that opens the database and calls do. It checks first that
// the database answers, so that every command has the same sentence when it does not.
func (a *app) withDatabase(do func(ctx context.Context, d *desk, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		cfg, err := a.config()
		if err != nil {
			return err
		}
		ctx := cmd.Context()
		db, err := outbox.Open(ctx, cfg.OutboxConfig())
		if err != nil {
			return err
		}
		defer db.Close()
		if err := ping(ctx, db); err != nil {
			return err
		}
		return do(ctx, &desk{cfg: cfg, db: db, out: a.printer(), keyboard: a.keyboard}, args)
	}
}

func ping(ctx context.Context, db *outbox.DB) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return db.Ping(ctx)
}
