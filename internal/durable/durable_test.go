package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"godwit.dev/godwit/internal/durable/durabletest"
)

// TestPowerCut demands that what a call has done is done after the power was
// cut, and that the disk of the test forgets what nobody made sure of.
func TestPowerCut(t *testing.T) {
	disk := durabletest.NewDisk(t)
	path := func(name string) string { return filepath.Join(disk.Dir, name) }
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"careless", "replaced", "renamed"} {
		try(WriteFile(path(name), []byte("old"), 0o600))
	}

	// As it was done before: the file synced, and not its name.
	file, err := os.Create(path("careless.next"))
	try(err)
	_, err = file.WriteString("new")
	try(errors.Join(err, file.Sync(), file.Close()))
	try(os.Rename(path("careless.next"), path("careless")))
	disk.CutPower()
	want(t, path("careless"), "old")

	for _, test := range []struct {
		name, file, content string
		do                  func() error
	}{
		{"replace", "replaced", "new", func() error { return WriteFile(path("replaced"), []byte("new"), 0o600) }},
		{"new", "new", "first", func() error { return WriteFile(path("new"), []byte("first"), 0o600) }},
		{"folder", "a/b/c/file", "deep", func() error {
			return errors.Join(MakeFolder(path("a/b/c"), 0o700), WriteFile(path("a/b/c/file"), []byte("deep"), 0o600))
		}},
		{"rename", "other", "old", func() error { return Rename(path("renamed"), path("other")) }},
		{"move", "a/other", "old", func() error { return Rename(path("other"), path("a/other")) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := test.do(); err != nil {
				t.Fatal(err)
			}
			disk.CutPower()
			want(t, path(test.file), test.content)
		})
	}
}

func want(t *testing.T, path, content string) {
	t.Helper()
	if text, err := os.ReadFile(path); err != nil || string(text) != content {
		t.Errorf("%s: %q, %v; want %q", filepath.Base(path), text, err, content)
	}
}

// TestFailure demands that the old content stays, and nothing beside it, when
// the new one can't be written or is given up.
func TestFailure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := WriteFile(path, []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	given, err := Create(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = given.WriteString("given up")
	if err := errors.Join(err, given.Discard()); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "taken"), []byte("new"), 0o600); err == nil {
		t.Error("a folder was replaced by a file")
	}
	if err := WriteFile(filepath.Join(dir, "none", "file"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into a folder that is not there: %v", err)
	}
	if err := MakeFolder(filepath.Join(path, "folder"), 0o700); err == nil {
		t.Error("a folder was made within a file")
	}
	want(t, path, "old")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// TestDiscardAfterCommit is what a deferred Discard relies on.
func TestDiscardAfterCommit(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	file, err := Create(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.WriteString("whole")
	if err := errors.Join(err, file.Commit(), file.Discard()); err != nil {
		t.Error(err)
	}
	want(t, path, "whole")
}
