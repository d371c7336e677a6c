package cli

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersionCommand(app *App) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Long:    "Version prints what this program was built from and with.",
		Example: "  godwit version --json | jq -r .version",
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			version, revision := build()
			if app.json {
				return app.printJSON(map[string]string{
					"version": version, "revision": revision,
					"go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
				})
			}
			return app.printText(func(w io.Writer) {
				fmt.Fprintf(w, "godwit %s", version)
				if revision != "" {
					fmt.Fprintf(w, " (%s)", revision)
				}
				fmt.Fprintf(w, ", %s %s/%s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH)
			})
		},
	}
}

// build gives the module's version and the revision of its source, as the Go
// toolchain recorded them.
func build() (version, revision string) {
	version = "(devel)"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version, ""
	}
	if info.Main.Version != "" {
		version = info.Main.Version
	}
	for _, setting := range info.Settings {
		switch {
		case setting.Key == "vcs.revision":
			revision = setting.Value
		case setting.Key == "vcs.modified" && setting.Value == "true":
			revision += ", modified"
		}
	}
	return version, revision
}
