package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// loader is what the kernel starts programs with that load shared libraries.
const loader = "/lib64/ld-linux-x86-64.so.2"

// maxLinks bounds the symbolic links from one to the next.
const maxLinks = 40

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

// librariesIn gives the same for a program of a Debian that is unpacked in root, which
// also has the libraries: by their paths in there.
func librariesIn(ctx context.Context, root, program string) (paths []string, err error) {
	own, err := resolve(root, loader)
	if err != nil {
		return nil, err
	}
	where := filepath.Join(root, "/lib/x86_64-linux-gnu") + ":" + filepath.Join(root, "/usr/lib/x86_64-linux-gnu")
	text, err := exec.CommandContext(ctx, own, "--list", "--library-path", where, filepath.Join(root, program)).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("libraries of %s: %w: %s", program, err, text)
	}
	all, err := parseLibraries(string(text))
	for _, path := range all {
		paths = append(paths, strings.TrimPrefix(path, root))
	}
	return paths, err
}

// resolve follows a path that is a symbolic link, as seen from inside of root, and gives
// where the file is.
func resolve(root, path string) (string, error) {
	for range maxLinks {
		at := filepath.Join(root, path)
		target, err := os.Readlink(at)
		switch {
		case errors.Is(err, syscall.EINVAL): // a file
			return at, nil
		case err != nil:
			return "", err
		case filepath.IsAbs(target):
			path = target
		default:
			path = filepath.Join(filepath.Dir(path), target)
		}
	}
	return "", &fs.PathError{Op: "resolve", Path: path, Err: syscall.ELOOP}
}
