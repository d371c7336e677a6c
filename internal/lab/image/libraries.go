package image

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// librariesOf gives the paths of the shared libraries that a program loads, the loader
// too, as ldd(1) tells them.
func librariesOf(ctx context.Context, program string) ([]string, error) {
	text, err := exec.CommandContext(ctx, "ldd", program).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w: %s", program, err, text)
	}
	return parseLibraries(string(text))
}

// parseLibraries reads lines such as "libc.so.6 => /lib/libc.so.6 (0x7f…)". A line
// without a path is of what the kernel brings itself.
func parseLibraries(text string) (paths []string, err error) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, "not found") {
			return nil, fmt.Errorf("a library is missing: %s", strings.TrimSpace(line))
		}
		for field := range strings.FieldsSeq(line) {
			if strings.HasPrefix(field, "/") {
				paths = append(paths, field)
			}
		}
	}
	return paths, nil
}
