package image

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

func TestBuildTwiceTouchesNothing(t *testing.T) {
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	// A cache of our own, over the kernel package that setup has fetched.
	ours := t.TempDir()
	if err := os.Symlink(filepath.Join(cache, "kernel"), filepath.Join(ours, "kernel")); err != nil {
		t.Fatal(err)
	}
	first, err := Build(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(first.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Build(t.Context(), ours)
	if err != nil || second != first {
		t.Fatalf("%+v, then %+v: %v", first, second, err)
	}
	after, err := os.Stat(second.Initrd)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the second build wrote the initramfs again: %v", err)
	}
	entries, err := os.ReadDir(filepath.Join(ours, "guest"))
	if err != nil || len(entries) != 2 {
		t.Errorf("files beside kernel and initrd are left: %v %v", entries, err)
	}
	if loaded, err := Load(ours); err != nil || loaded != first {
		t.Errorf("loaded %+v: %v", loaded, err)
	}
}

func TestMissingImageSaysWhatToDo(t *testing.T) {
	for name, err := range map[string]error{
		"load":  second(Load(t.TempDir())),
		"build": second(Build(t.Context(), t.TempDir())),
	} {
		if fleet.CodeOf(err) != fleet.NotFound || !strings.Contains(fleet.HintOf(err), "make setup") {
			t.Errorf("%s: %v, hint %q", name, err, fleet.HintOf(err))
		}
	}
}

func second(_ Image, err error) error { return err }

// The archive is read by the cpio program, where there is one.
func TestArchiveIsReadByCpio(t *testing.T) {
	var out bytes.Buffer
	a := archive{w: &out}
	files := map[string]string{"f/empty": "", "f/one": "1", "f/four": "1234", "f/page": strings.Repeat("x", 4097)}
	if err := a.add("f", modeFolder, nil); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := a.add(name, modeFile, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.finish(); err != nil {
		t.Fatal(err)
	}
	if out.Len()%4 != 0 {
		t.Errorf("%d bytes are not whole words", out.Len())
	}
	program, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("no cpio program to read it with; the guest's boot reads one, too")
	}
	dir := t.TempDir()
	extract := exec.CommandContext(t.Context(), program, "-id", "--quiet")
	extract.Dir, extract.Stdin = dir, &out
	if text, err := extract.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s has %d bytes, want %d: %v", name, len(got), len(want), err)
		}
	}
}
