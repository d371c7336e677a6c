package pki

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

// modes gives the files below dir with their permission bits.
func modes(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	found := map[string]fs.FileMode{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		found[entry.Name()] = info.Mode().Perm()
	}
	return found
}

func wantModes(t *testing.T, dir string, names ...string) {
	t.Helper()
	found := modes(t, dir)
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, names) {
		t.Errorf("files %v, want %v", got, names)
	}
	for name, mode := range found {
		if mode != 0o600 {
			t.Errorf("%s has mode %o", name, mode)
		}
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", info.Mode(), err)
	}
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	c := enrolled(t, newAuthority(t), Identity{Host, "h1"}, 0)
	dir := filepath.Join(t.TempDir(), "own")
	for range 2 { // a second time over the first
		if err := c.Save(dir); err != nil {
			t.Fatal(err)
		}
		wantModes(t, dir, "ca.pem", "cert.pem", "key.pem")
	}
	if err := os.Chmod(filepath.Join(dir, fileAuthority), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Save(dir); err != nil {
		t.Fatal(err)
	}
	wantModes(t, dir, "ca.pem", "cert.pem", "key.pem")
	qemu := filepath.Join(t.TempDir(), "qemu")
	if err := c.WriteQEMUCreds(qemu); err != nil {
		t.Fatal(err)
	}
	wantModes(t, qemu, "ca-cert.pem", "client-cert.pem", "client-key.pem", "dh-params.pem", "server-cert.pem", "server-key.pem")
}

// A crash at any step of Save leaves credentials that fit together.
func TestCrashWhileSaving(t *testing.T) {
	a := newAuthority(t)
	old, next := enrolled(t, a, Identity{Host, "h1"}, 0), enrolled(t, a, Identity{Host, "h1"}, 0)
	write := func(name string, data []byte) func(string) error {
		return func(dir string) error { return writeFile(filepath.Join(dir, name), data) }
	}
	steps := []func(string) error{write(fileNextKey, next.Key), write(fileCertificate, next.Certificate), adoptNextKey}
	for done := range len(steps) + 1 {
		dir := t.TempDir()
		if err := old.Save(dir); err != nil {
			t.Fatal(err)
		}
		for _, step := range steps[:done] {
			if err := step(dir); err != nil {
				t.Fatal(err)
			}
		}
		want := old
		if done >= 2 {
			want = next
		}
		for range 2 { // the second load finds what the first repaired
			got, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			if string(got.Certificate) != string(want.Certificate) || string(got.Key) != string(want.Key) {
				t.Errorf("after %d steps: neither the old nor the new credentials", done)
			}
			if _, err := got.parse(); err != nil {
				t.Errorf("after %d steps: %v", done, err)
			}
		}
	}
}

func TestLoadFailures(t *testing.T) {
	c := enrolled(t, newAuthority(t), Identity{Host, "h1"}, 0)
	other := enrolled(t, newAuthority(t), Identity{Host, "h1"}, 0)
	_, err := Load(t.TempDir())
	wantCode(t, err, fleet.NotFound)
	for name, damage := range map[string]struct {
		file string
		data []byte
		code fleet.Code
	}{
		"key of another":       {fileKey, other.Key, fleet.Invalid},
		"authority of another": {fileAuthority, other.Authority, fleet.Denied},
		"damaged certificate":  {fileCertificate, []byte("x"), fleet.Invalid},
		"leaf as authority":    {fileAuthority, c.Certificate, fleet.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := c.Save(dir); err != nil {
				t.Fatal(err)
			}
			if err := writeFile(filepath.Join(dir, damage.file), damage.data); err != nil {
				t.Fatal(err)
			}
			_, err := OpenKeeper(dir, nil, nil)
			wantCode(t, err, damage.code)
		})
	}
}
