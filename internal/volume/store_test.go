package volume

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

func names(infos []Info) (found []string) {
	for _, info := range infos {
		found = append(found, string(info.Name))
	}
	return found
}

func TestCreateListDelete(t *testing.T) {
	store := openStore(t)
	info, err := store.Create("a", 1<<40, "")
	if err != nil || info.Size != 1<<40 || info.Allocated > fleet.MiB {
		t.Errorf("%+v, %v", info, err)
	}
	if got := names(store.List()); !slices.Equal(got, []string{"a", "v"}) {
		t.Error(got)
	}
	if err := store.Delete("a"); err != nil {
		t.Fatal(err)
	}
	if got := names(store.List()); !slices.Equal(got, []string{"v"}) {
		t.Error(got)
	}
	entries, err := os.ReadDir(filepath.Join(store.dir, volumesDir))
	if err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestRefusedChanges(t *testing.T) {
	store := openStore(t)
	create := func(name fleet.VolumeName, size fleet.Bytes, device string) error {
		_, err := store.Create(name, size, device)
		return err
	}
	grow := func(name fleet.VolumeName, size fleet.Bytes) error {
		_, err := store.Grow(name, size)
		return err
	}
	for name, test := range map[string]struct {
		err  error
		want fleet.Code
	}{
		"name":            {create("../v", 1, ""), fleet.Invalid},
		"exists":          {create("v", 1, ""), fleet.Exists},
		"no size":         {create("w", 0, ""), fleet.Invalid},
		"huge":            {create("w", MaxSize+1, ""), fleet.Invalid},
		"no device":       {create("w", 0, "/dev/is-not-there"), fleet.Invalid},
		"device and size": {create("w", 1, "/dev/null"), fleet.Invalid},
		"a file":          {create("w", 0, filepath.Join(store.dir, lockName)), fleet.Invalid},
		"no volumes":      {store.Activate(nil, 1, "h1", key(1, "h1")), ""},
		"char device":     {create("w", 0, "/dev/null"), fleet.Invalid},
		"relative device": {create("w", 0, "dev/sda"), fleet.Invalid},
		"grow nothing":    {grow("w", 1), fleet.NotFound},
		"grow to nothing": {grow("v", 0), fleet.Invalid},
		"shrink":          {grow("v", 1), fleet.Invalid},
		"delete nothing":  {store.Delete("w"), fleet.NotFound},
	} {
		if fleet.CodeOf(test.err) != test.want {
			t.Errorf("%s: %v, want %s", name, test.err, test.want)
		}
	}
	if got := names(store.List()); !slices.Equal(got, []string{"v"}) {
		t.Errorf("what was refused left %v", got)
	}
}

func TestDeleteWhileUsed(t *testing.T) {
	store := openStore(t)
	c := dial(t, serveLocal(t, store)).enter("v", true)
	if err := store.Delete("v"); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("connected: %v", err)
	}
	if _, err := store.Grant("v", standbyOf(1, "h1")); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete("v"); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("standby: %v", err)
	}
	if err := store.Activate([]fleet.VolumeName{"v"}, 1, "h1", key(1, "h1")); err != nil {
		t.Fatal(err)
	}
	c.wantClosed()
	if err := store.Delete("v"); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("active: %v", err)
	}
	if _, err := store.Release("v", 1, ""); err != nil {
		t.Fatal(err)
	}
	if err := store.Delete("v"); err != nil {
		t.Error(err)
	}
}

// Sizes and leases are as they were when the folder is opened again.
func TestOpenAgain(t *testing.T) {
	dir := t.TempDir()
	store, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create("v", volumeSize, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Grow("v", 2*volumeSize); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Grant("v", standbyOf(3, "h1")); err != nil {
		t.Fatal(err)
	}
	if err := store.Activate([]fleet.VolumeName{"v"}, 3, "h1", key(3, "h1")); err != nil {
		t.Fatal(err)
	}
	want, err := store.Grant("v", standbyOf(4, "h2"))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if store, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if got := store.List(); len(got) != 1 || got[0].Size != 2*volumeSize || !got[0].Lease.equal(want) {
		t.Errorf("%+v, want size %d and %+v", got, 2*volumeSize, want)
	}
}

// Where one of the named volumes is missing, no lease changes.
func TestActivateWithoutAVolume(t *testing.T) {
	store := openStore(t)
	want, err := store.Grant("v", standbyOf(1, "h1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Activate([]fleet.VolumeName{"v", "w"}, 1, "h1", key(1, "h1")); fleet.CodeOf(err) != fleet.NotFound {
		t.Error(err)
	}
	if got := store.List(); !got[0].Lease.equal(want) {
		t.Errorf("%+v", got[0].Lease)
	}
}

// A store that is closed, and so not locked any more, changes nothing.
func TestClosed(t *testing.T) {
	store, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create("v", volumeSize, ""); fleet.CodeOf(err) != fleet.Unavailable {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Join(store.dir, volumesDir)); err != nil || len(entries) > 0 {
		t.Errorf("made: %v, %v", entries, err)
	}
}

func TestLocks(t *testing.T) {
	store := openStore(t)
	_, err := Open(store.dir)
	if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), store.dir) || fleet.HintOf(err) == "" {
		t.Errorf("the folder twice: %v", err)
	}
	other := t.TempDir()
	if err := os.MkdirAll(filepath.Join(other, volumesDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(store.dir, volumesDir, "v"), filepath.Join(other, volumesDir, "v")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(other); fleet.CodeOf(err) != fleet.Conflict || fleet.HintOf(err) == "" {
		t.Errorf("a volume of another folder: %v", err)
	}
}

// What a crash leaves half made or half removed, the next start removes.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, volumesDir, unfinished+"w")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, dataName), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
	if len(store.List()) != 0 {
		t.Error(store.List())
	}
}

// One volume that is damaged does not keep the others from being served.
func TestDamagedVolumes(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"no lease":   func(dir string) error { return os.Remove(filepath.Join(dir, leaseName)) },
		"bad lease":  func(dir string) error { return os.WriteFile(filepath.Join(dir, leaseName), make([]byte, 8192), 0o600) },
		"bad config": func(dir string) error { return os.WriteFile(filepath.Join(dir, configName), []byte("{"), 0o600) },
		"cut data":   func(dir string) error { return os.Truncate(filepath.Join(dir, dataName), 5) },
		"no data":    func(dir string) error { return os.Remove(filepath.Join(dir, dataName)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			store, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, volume := range []fleet.VolumeName{"bad", "good"} {
				if _, err := store.Create(volume, volumeSize, ""); err != nil {
					t.Fatal(err)
				}
			}
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
			if err := damage(filepath.Join(dir, volumesDir, "bad")); err != nil {
				t.Fatal(err)
			}
			if store, err = Open(dir); err != nil {
				t.Fatal(err)
			}
			defer store.Close()
			got := store.List()
			if len(got) != 2 || got[0].Problem == "" || got[1].Problem != "" {
				t.Errorf("%+v", got)
			}
			if _, err := store.Grant("bad", standbyOf(1, "h1")); fleet.CodeOf(err) != fleet.Failed {
				t.Error(err)
			}
			if _, err := store.Create("bad", volumeSize, ""); fleet.CodeOf(err) != fleet.Exists {
				t.Error(err)
			}
		})
	}
}

// A block device is a volume while nobody else uses it, of the size that it
// has.
func TestBlockDevice(t *testing.T) {
	if _, err := exec.LookPath("losetup"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs losetup and root")
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, volumeSize), 0o600); err != nil {
		t.Fatal(err)
	}
	made, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Skipf("this machine has no loop devices: %v", err)
	}
	device := strings.TrimSpace(string(made))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", device).Run() })
	store := openStore(t)
	info, err := store.Create("d", 0, device)
	if err != nil || info.Size != volumeSize {
		t.Fatalf("%+v, %v", info, err)
	}
	if _, err := store.Create("e", 0, device); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("a second volume of it: %v", err)
	}
	c := dial(t, serveLocal(t, store)).enter("d", true)
	c.write(1000, 7, 10_000, flagFUA)
	for _, command := range []command{cmdWriteZeroes, cmdTrim} { // of no whole blocks
		if got := c.do(request{command: command, offset: 2001, length: 3}, nil).errno; got != 0 {
			t.Errorf("command %d: %v", command, got)
		}
	}
	c.wantBytes(1000, 7, 1001)
	c.wantBytes(2001, 0, 3)
	c.wantBytes(2004, 7, 8996)
	if got := c.do(request{command: cmdWriteZeroes, flags: flagNoHole, length: volumeSize}, nil).errno; got != 0 {
		t.Error(got)
	}
	c.wantBytes(0, 0, volumeSize)
	if got := c.do(request{command: cmdBlockStatus, length: volumeSize}, nil); len(got.extents) == 0 {
		t.Errorf("%+v", got)
	}
	if _, err := store.Grow("d", 2*volumeSize); fleet.CodeOf(err) != fleet.Invalid {
		t.Errorf("grown beyond the device: %v", err)
	}
	_ = c.conn.Close()
}
