package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/config"
	"github.com/quintago/webhook-agent/outbox"
)

// anyDatabase stands for the database where none is asked.
const anyDatabase = "postgres:///"

// loadForAnyDatabase loads the configuration for what is the same in every database, so that people
// need not say where theirs is.
func (a *app) loadForAnyDatabase() (*config.Config, error) {
	return config.Load(config.Input{Path: a.filePath(), Environ: a.environ(), DatabaseURL: anyDatabase})
}

// migrateFlags are the flags of migrate.
type migrateFlags struct {
	print, grants, dryRun bool
	from                  int
}

func (a *app) migrateCommand() *cobra.Command {
	var flags migrateFlags
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Create or update the schema webhooks",
		Long: `migrate brings the schema webhooks and the publications to the state that this binary needs. It may run under another
role than the agent: one that may create a schema and owns the outbox table. Name that role by --database-url. (DATABASE_URL is used only
where neither the file nor WEBHOOK_AGENT_DATABASE_URL sets database.url, and a notice says if it is not used.) It only goes forward, and
several at a time wait for each other. Agents go on meanwhile, and an INSERT of the app waits about a second at most. docs/upgrading.md has the order
of an upgrade.`,
		Example: `  webhook-agent migrate
  webhook-agent migrate --database-url env:OWNER_URL   as the role that OWNER_URL in the environment names
  webhook-agent migrate --dry-run                what it would do, what it would lock, what that costs
  webhook-agent migrate --print > webhooks.sql   for an empty database, and people who run their own migrations
  webhook-agent migrate --print --from 17        only what a database of version 17 still needs
  webhook-agent migrate --print-grants           what the roles of the agent, of the app and of people need`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flags.check(cmd); err != nil {
				return err
			}
			load := a.config
			if flags.print {
				load = a.loadForAnyDatabase
			}
			cfg, err := load()
			if err != nil {
				return err
			}
			switch {
			case flags.grants:
				_, err := io.WriteString(a.stdout, outbox.PrintGrants(cfg.OutboxConfig()))
				return err
			case flags.print:
				return printMigrations(a.stdout, cfg.OutboxConfig(), flags.from)
			case flags.dryRun:
				return planMigration(cmd.Context(), a.printer(), cfg.OutboxConfig())
			}
			return migrate(cmd.Context(), a.printer(), a.stderr, cfg.OutboxConfig())
		},
	}
	cmd.Flags().BoolVar(&flags.print, "print", false, "print the SQL instead of running it; needs no database")
	cmd.Flags().IntVar(&flags.from, "from", 0, "with --print: the version that the schema has")
	cmd.Flags().BoolVar(&flags.dryRun, "dry-run", false, "say what would be done, and change nothing")
	cmd.Flags().BoolVar(&flags.grants, "print-grants", false, "only print what the roles of the agent, of the app and of people need")
	return cmd
}

func (f migrateFlags) check(cmd *cobra.Command) error {
	chosen := 0
	for _, set := range []bool{f.print, f.grants, f.dryRun} {
		if set {
			chosen++
		}
	}
	switch {
	case chosen > 1:
		return usagef(cmd, "--print, --print-grants and --dry-run exclude each other; give one of them")
	case cmd.Flags().Changed("from") && !f.print:
		return usagef(cmd, "--from is for --print; give both, or --dry-run to see what would be done")
	case f.from < 0 || f.from > outbox.SchemaVersion():
		return usagef(cmd, "--from %d is no version that this binary knows; give one from 0 to %d, as webhook-agent status shows it", f.from, outbox.SchemaVersion())
	}
	return nil
}

func printMigrations(w io.Writer, cfg outbox.Config, from int) error {
	sql, err := outbox.PrintMigrations(cfg, from)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, sql)
	return err
}

func migrate(ctx context.Context, out *printer, progress io.Writer, cfg outbox.Config) error {
	migrator := outbox.Migrator{Config: cfg, Progress: func(text string) { _, _ = fmt.Fprintln(progress, text) }}
	from, to, err := migrator.Run(ctx)
	if err != nil {
		return outbox.ExplainMigration(ctx, cfg, err)
	}
	if out.asJSON {
		return out.json(struct {
			From int `json:"from"`
			To   int `json:"to"`
		}{from, to})
	}
	if from == to {
		out.line("%s", schemaStands(to))
		return nil
	}
	was := "had no version"
	if from > 0 {
		was = fmt.Sprintf("had version %d", from)
	}
	out.line("the schema webhooks %s and has version %d now", was, to)
	return nil
}

// schemaStands says that there is no migration to run.
func schemaStands(version int) string {
	text := fmt.Sprintf("the schema webhooks has version %d already", version)
	if known := outbox.SchemaVersion(); version > known {
		text += fmt.Sprintf(", which is newer than this binary; it knows %d, works with it, and has nothing to migrate", known)
	}
	return text
}

func planMigration(ctx context.Context, out *printer, cfg outbox.Config) error {
	db, err := outbox.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer db.Close()
	plan, err := db.PlanMigration(ctx)
	if err != nil {
		return err
	}
	if out.asJSON {
		return out.json(plan)
	}
	switch {
	case plan.From == plan.To:
		out.line("%s", schemaStands(plan.To))
	case plan.From == 0:
		out.line("the schema webhooks has no version yet and would have version %d", plan.To)
	default:
		out.line("the schema webhooks has version %d and would have version %d", plan.From, plan.To)
	}
	for _, change := range plan.Migrations {
		printChange(out, plan.From, change)
	}
	if len(plan.Publications) > 0 {
		out.line("creates the publications %s", strings.Join(plan.Publications, ", "))
	}
	for _, addition := range plan.Additions {
		out.line("adds to the publication %s: %s", addition.Publication, strings.Join(addition.Tables, ", "))
	}
	if plan.From > 0 && len(plan.Migrations) > 0 {
		out.line("A migration that does not get its locks within a second lets the others pass, and tries again.")
	}
	out.line("nothing was changed")
	return nil
}

// printChange says what concerns those who use the schema already. At a first installation there is
// nobody.
func printChange(out *printer, from int, change outbox.PlannedChange) {
	if from == 0 {
		out.line("%s", change.Name)
		return
	}
	kind := "contraction"
	if change.Expansion {
		kind = "expansion"
	}
	out.line("%s: %s, binaries of schema %d or newer work with it", change.Name, kind, change.Compatible)
	for _, lock := range change.Locks {
		others := "others read it, and do not write to it"
		switch lock.Mode {
		case "share update exclusive":
			others = "others read it and write to it, and VACUUM waits"
		case "access exclusive":
			others = "nobody else reads it or writes to it"
		}
		out.line("    locks %s (%s): %s until it is done; about %d rows", lock.Table, lock.Mode, others, lock.Rows)
	}
	if change.Costs != "" {
		out.line("    costs: %s", change.Costs)
	}
}
