package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/agent/config"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Look at the configuration",
		Example: `  webhook-agent config validate`,
		Args:    subcommandRequired,
		RunE:    showHelp,
	}
	cmd.AddCommand(&cobra.Command{
		Use:        "validate",
		SuggestFor: []string{"show", "check", "list", "test"},
		Short:      "Say what is wrong with the configuration, and where each value comes from",
		Long: `validate reads the configuration as all commands do: --database-url wins over the environment (WEBHOOK_AGENT_ and table and key in
capitals, such as WEBHOOK_AGENT_DELIVERY_TIMEOUT), the environment over the file, and the file over the defaults. It needs no database. It
prints every problem and ends with status 2, or prints ok, each value that is not the default, and where that comes from. Secrets are not
shown.`,
		Example: `  webhook-agent config validate
  webhook-agent config validate --config /etc/quintago/webhook-agent.toml
  webhook-agent config validate --json | jq '.settings[] | select(.key == "delivery.timeout")'`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return a.validate() },
	})
	return cmd
}

// verdict is the answer of config validate.
type verdict struct {
	OK       bool             `json:"ok"`
	File     *string          `json:"file"` // null when no file is read
	Problems []config.Problem `json:"problems"`
	Settings []config.Setting `json:"settings"`
	Notices  []string         `json:"notices"`
}

func (a *app) validate() error {
	v := verdict{Problems: []config.Problem{}, Settings: []config.Setting{}, Notices: []string{}}
	if path := a.filePath(); path != "" {
		v.File = &path
	}
	out := a.printer()
	cfg, err := a.load()
	if wrong, ok := errors.AsType[*config.Error](err); ok && out.asJSON {
		v.Problems = wrong.Problems
		return errors.Join(out.json(v), errFindings, err)
	}
	if err != nil {
		return err
	}
	v.OK, v.Settings, v.Notices = true, cfg.Settings(), append(v.Notices, cfg.Warnings...)
	if out.asJSON {
		return out.json(v)
	}
	out.line("ok")
	rows := make([][]string, len(v.Settings))
	for i, s := range v.Settings {
		rows[i] = []string{s.Key, s.Value, s.Source}
	}
	out.table([]column{{name: "key"}, {name: "value", flexible: true}, {name: "comes from"}}, rows)
	for _, notice := range v.Notices {
		out.line("notice: %s", notice)
	}
	return nil
}

func (a *app) initCommand() *cobra.Command {
	var force, toStdout bool
	cmd := &cobra.Command{
		Use:   "init [FILE]",
		Short: "Write a configuration file with every key, its default and what it means",
		Long: `init writes the file that the other commands would read: FILE, or the one that --config or WEBHOOK_AGENT_CONFIG names, or
./` + localConfigPath + `. Only its owner can read it (mode 0600), since it may get secrets. A file that exists is kept, unless --force is
given. "-" and --stdout print the text.`,
		Example: `  webhook-agent init
  webhook-agent init /etc/quintago/webhook-agent.toml
  webhook-agent init - > webhook-agent.toml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && args[0] == "" {
				return usagef(cmd, "%s may take the path of one file", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.databaseURL != "" {
				return usagef(cmd, "--database-url is not written into a file; set database.url in it")
			}
			path := cmp.Or(strings.Join(args, ""), a.namedPath(), localConfigPath)
			if toStdout || path == "-" {
				_, err := io.WriteString(a.stdout, config.Example)
				return err
			}
			if err := writeConfig(path, force); err != nil {
				return err
			}
			out := a.printer()
			if out.asJSON {
				return out.json(struct {
					Path string `json:"path"`
				}{path})
			}
			out.line("wrote %s; say in it, or by DATABASE_URL, where the database is, and then run: webhook-agent config validate --config %s", path, path)
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "write over a file that exists")
	cmd.Flags().BoolVar(&toStdout, "stdout", false, "print the text instead of writing a file")
	return cmd
}

// writeConfig writes the example to a new file. With force it writes over one that exists.
func writeConfig(path string, force bool) error {
	mode := os.O_EXCL
	if force {
		mode = os.O_TRUNC
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|mode, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists; name another file, or write over it by --force", path)
	}
	if err == nil {
		_, written := io.WriteString(file, config.Example)
		err = cmp.Or(file.Chmod(0o600), written, file.Close()) // the file may have had another mode
	}
	if failure, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s cannot be written: %w; name a file in a folder that exists and that you may write to", path, failure.Err)
	}
	return err
}
