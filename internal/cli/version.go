package cli

import (
	"cmp"
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

// linkedVersion is the version that whoever builds a package gives it, by
// -ldflags '-X godwit.dev/godwit/internal/cli.linkedVersion=v1.2.3'.
var linkedVersion string

// build gives the program's version, which is the module's where the build named
// none, and the revision of its source, as the Go toolchain recorded it.
func build() (version, revision string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return cmp.Or(linkedVersion, "(devel)"), ""
	}
	version = cmp.Or(linkedVersion, info.Main.Version, "(devel)")
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
