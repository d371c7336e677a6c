package image

import (
	"bytes"
	"fmt"
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

// What BuildWith adds is a program that runs in there: it and its libraries are at their
// paths, and can be executed.
func TestBuildWithPrograms(t *testing.T) {
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, err := BuildWith(t.Context(), cache, t.TempDir(), "/bin/cat", "/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	unpack(t, img.Initrd, root)
	inside := exec.CommandContext(t.Context(), "chroot", root, "/bin/cat", "/modules/order")
	if text, err := inside.CombinedOutput(); err != nil || !strings.Contains(string(text), "virtio_net.ko") {
		t.Errorf("cat in the image says %q: %v", text, err)
	}
}

// What BuildFrom adds is of a Debian in a folder, whose own loader is named by an absolute
// link there.
func TestBuildFromADebian(t *testing.T) {
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, err := BuildWith(t.Context(), cache, t.TempDir(), "/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	debian := t.TempDir()
	unpack(t, img.Initrd, debian)
	const own = "/lib/x86_64-linux-gnu/ld.so"
	if err := os.Rename(filepath.Join(debian, loader), filepath.Join(debian, own)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(own, filepath.Join(debian, loader)); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(debian, "usr/include/sys"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(debian, "usr/include/sys/a.h"), []byte("of Debian"), 0o600); err != nil {
		t.Fatal(err)
	}
	if img, err = BuildFrom(t.Context(), cache, t.TempDir(), debian, []string{"/bin/cat"}, []string{"/usr/include"}); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	unpack(t, img.Initrd, root)
	inside := exec.CommandContext(t.Context(), "chroot", root, "/bin/cat", "/usr/include/sys/a.h")
	if text, err := inside.CombinedOutput(); err != nil || string(text) != "of Debian" {
		t.Errorf("cat in the image says %q: %v", text, err)
	}
	if _, err := BuildFrom(t.Context(), cache, t.TempDir(), debian, []string{"/bin/dog"}, nil); err == nil {
		t.Error("a program that is not there is in an image")
	}
}

// unpack puts what is in an archive into a folder. Whatever is not below a folder that
// came before it cannot be made, as in the kernel.
func unpack(t *testing.T, archive, root string) {
	t.Helper()
	rest, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	const head, name, aligned = 110, 94, 3
	for {
		var mode, size, length int
		if _, err := fmt.Sscanf(string(rest[14:22])+" "+string(rest[54:62])+" "+string(rest[name:name+8]), "%x %x %x", &mode, &size, &length); err != nil {
			t.Fatal(err)
		}
		path := string(rest[head : head+length-1])
		if path == "TRAILER!!!" {
			return
		}
		rest = rest[(head+length+aligned)&^aligned:]
		if mode == modeFolder {
			err = os.Mkdir(filepath.Join(root, path), 0o755)
		} else {
			err = os.WriteFile(filepath.Join(root, path), rest[:size], os.FileMode(mode&0o777))
		}
		if err != nil {
			t.Fatal(err)
		}
		rest = rest[(size+aligned)&^aligned:]
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
