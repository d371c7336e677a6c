package cli_test

import (
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"godwit.dev/godwit/internal/cli"
)

// TestSpecsOfAnyFormAreReadOrRefused demands that no document is more than
// read (and then not delivered, for there is no server) or refused as invalid.
func TestSpecsOfAnyFormAreReadOrRefused(t *testing.T) {
	word := rapid.SampledFrom([]string{
		"name", "cpus", "memory", "boot", "disks", "ports", "ips", "kernel", "path", ":", ": ", "- ", "\n", "\n  ", "\n    ",
		"[", "]", "{", "}", ",", "&a ", "*a", "!!int ", "<<", "? ", "|\n", ">-\n", "#", "\"", "'", "~", "null", "true", "1.5", "0x1f",
		"512MiB", ".inf", "---\n", "...\n", "%YAML 1.2\n", "\t", "é", "\x00",
	})
	rapid.Check(t, func(t *rapid.T) {
		spec := strings.Join(rapid.SliceOfN(word, 0, 40).Draw(t, "words"), "")
		app := &cli.App{In: strings.NewReader(spec), Out: io.Discard, Err: io.Discard, Getenv: func(string) string { return "" }}
		code := cli.Main(t.Context(), app, []string{"vm", "create", "-f", "-", "--server", "unix:///nowhere/s"})
		if code != 2 && code != 5 {
			t.Fatalf("exit code %d for %q", code, spec)
		}
	})
}

func TestSpecHasALimit(t *testing.T) {
	app := cli.OS()
	var said strings.Builder
	app.In, app.Err = strings.NewReader(strings.Repeat("#", 1<<20+1)), &said
	if code := cli.Main(t.Context(), app, []string{"vm", "create", "-f", "-"}); code != 2 || !strings.Contains(said.String(), "1MiB") {
		t.Errorf("exit code %d, said %q", code, said.String())
	}
}
