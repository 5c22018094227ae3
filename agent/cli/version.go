package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/spf13/cobra"

	"github.com/quintago/webhook-agent/outbox"
)

// version is set by the linker: -ldflags "-X
// github.com/quintago/webhook-agent/agent/cli.version=v1.2.3". Where it is empty, Go's record in
// the binary says the version.
var version string

// revisionLength is how much of a commit's hash a version shows, as in the versions that Go makes.
const revisionLength = 12

// agentVersion returns the version of this program.
var agentVersion = sync.OnceValue(func() string {
	info, _ := debug.ReadBuildInfo()
	return versionOf(version, info)
})

// versionOf returns what the linker was given, if that is anything. Otherwise it returns the
// version that Go has recorded: the one that go install was asked for, or the one that go build
// made of the checkout, which has its revision, and +dirty if it had changes. Without both it is
// "dev". info may be nil.
func versionOf(linked string, info *debug.BuildInfo) string {
	switch {
	case linked != "":
		return linked
	case info == nil:
		return "dev"
	case info.Main.Version != "" && info.Main.Version != "(devel)":
		return info.Main.Version
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	revision := settings["vcs.revision"]
	if revision == "" {
		return "dev"
	}
	revision = revision[:min(len(revision), revisionLength)]
	if settings["vcs.modified"] == "true" {
		revision += "+dirty"
	}
	return revision
}

// versionLine is what the command version and the flag --version print.
func versionLine() string {
	return fmt.Sprintf("webhook-agent %s (%s, schema %d)", agentVersion(), runtime.Version(), outbox.SchemaVersion())
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  webhook-agent version --json",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			if out := a.printer(); !out.asJSON {
				out.line("%s", versionLine())
				return nil
			}
			return a.printer().json(struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				Schema  int    `json:"schema"`
			}{agentVersion(), runtime.Version(), outbox.SchemaVersion()})
		},
	}
}

// addVersionFlag gives the command root the flag --version, without cobra's short form -v, which
// people take for "verbose".
func addVersionFlag(root *cobra.Command) {
	root.Version = versionLine()
	root.SetVersionTemplate("{{.Version}}\n")
	root.Flags().Bool("version", false, "print the version")
}
