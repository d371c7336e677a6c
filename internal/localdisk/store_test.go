package localdisk_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/localdisk"
)

const uid = "6b1d5a0c-6d3f-4f0e-9a55-0c5f0d1f8a11"

func open(t *testing.T) (*localdisk.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "disks")
	store, err := localdisk.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return store, dir
}

func empty(path, _ string, _ fleet.Bytes) error { return os.WriteFile(path, nil, 0o600) }

var disks = []fleet.Disk{{Name: "root", Format: "raw", Size: fleet.MiB}, {Name: "data", Format: "qcow2", Size: fleet.MiB}}

func put(t *testing.T, store *localdisk.Store, epoch fleet.Epoch, state localdisk.State) localdisk.Copy {
	t.Helper()
	one, err := store.Make(localdisk.Copy{VM: "web1", UID: uid, Epoch: epoch, State: state}, disks, empty)
	if err != nil {
		t.Fatal(err)
	}
	return one
}

// A start gets the copy that the VM's record speaks of, and no other.
func TestUse(t *testing.T) {
	const filling, good, old = localdisk.Filling, localdisk.Good, localdisk.Old
	type has struct {
		epoch fleet.Epoch
		state localdisk.State
	}
	for name, tt := range map[string]struct {
		copies []has
		from   fleet.Epoch
		gets   fleet.Epoch // for which it was made; 0: none
		code   fleet.Code
		says   string
	}{
		"nothing yet":             {code: fleet.NotFound, says: "has none"},
		"nothing any more":        {from: 3, code: fleet.Failed, says: "has none"},
		"its own":                 {copies: []has{{3, good}}, from: 3, gets: 3},
		"a newer one":             {copies: []has{{5, good}}, from: 3, gets: 5},
		"made, and never heard":   {copies: []has{{3, good}}, gets: 3},
		"of before":               {copies: []has{{2, good}}, from: 3, code: fleet.Failed, says: "of epoch 2, and the VM's data are of epoch 3"},
		"run on elsewhere":        {copies: []has{{3, old}}, from: 3, code: fleet.Failed, says: "run on elsewhere"},
		"half of one":             {copies: []has{{4, filling}}, from: 3, code: fleet.Failed, says: "not copied in full"},
		"half of one, and it":     {copies: []has{{3, good}, {4, filling}}, from: 3, gets: 3},
		"committed, not marked":   {copies: []has{{2, old}, {4, filling}}, from: 4, gets: 4},
		"half, before the first":  {copies: []has{{4, filling}}, code: fleet.Failed, says: "not copied in full"},
		"it came back":            {copies: []has{{2, old}, {4, good}}, from: 4, gets: 4},
		"an old one that is left": {copies: []has{{2, good}, {4, old}}, from: 4, code: fleet.Failed, says: "of epoch 2"},
	} {
		t.Run(name, func(t *testing.T) {
			store, _ := open(t)
			made := map[fleet.Epoch]string{}
			for _, one := range tt.copies {
				made[one.epoch] = put(t, store, one.epoch, one.state).Dir
			}
			got, err := store.Use("web1", uid, 9, tt.from)
			if tt.gets == 0 {
				if fleet.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("error %v, want %s and %q", err, tt.code, tt.says)
				}
				return
			}
			if err != nil || got.Dir != made[tt.gets] || got.Epoch != 9 || got.State != good {
				t.Errorf("got %+v, %v; want that of epoch %d", got, err, tt.gets)
			}
			if read, err := store.In(got.Dir); err != nil || read != got {
				t.Errorf("the mark is %+v, %v", read, err)
			}
		})
	}
}

// What a target runs from is the only copy that its host keeps.
func TestRan(t *testing.T) {
	store, dir := open(t)
	put(t, store, 1, localdisk.Old)
	put(t, store, 3, localdisk.Good)
	now := put(t, store, 5, localdisk.Filling)
	if err := store.Ran(now); err != nil {
		t.Fatal(err)
	}
	if all, err := store.All(); err != nil || len(all) != 3 {
		t.Errorf("before the older ones go there are %+v, %v", all, err)
	}
	if err := store.RemoveOlder(now); err != nil {
		t.Fatal(err)
	}
	all, err := store.All()
	if err != nil || len(all) != 1 || all[0].Dir != now.Dir || all[0].State != localdisk.Good {
		t.Errorf("there are %+v, %v", all, err)
	}
	if err := store.Remove(now); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := store.Remove(now); err != nil {
		t.Errorf("removed again: %v", err)
	}
	if _, err := store.In(now.Dir); !errors.Is(err, localdisk.ErrNone) {
		t.Errorf("of nothing: %v", err)
	}
}

func TestRemoveDue(t *testing.T) {
	store, _ := open(t)
	now := time.Now()
	put(t, store, 1, localdisk.Good)
	for epoch, at := range map[fleet.Epoch]time.Time{2: now.Add(-time.Hour), 3: now.Add(time.Minute), 4: now.Add(time.Hour), 5: {}} {
		one := put(t, store, epoch, localdisk.Old)
		one.RemoveAt = at
		if err := store.Mark(one); err != nil {
			t.Fatal(err)
		}
	}
	next, err := store.RemoveDue(now)
	if err != nil || !next.Equal(now.Add(time.Minute)) {
		t.Errorf("the next is due at %v, %v", next, err)
	}
	if left, err := store.Of(uid); err != nil || len(left) != 4 || left[1].Epoch != 3 {
		t.Errorf("left: %+v, %v", left, err)
	}
}

// What can't be made in full is not there, and says what is missing.
func TestMakeFails(t *testing.T) {
	store, dir := open(t)
	one := localdisk.Copy{VM: "web1", UID: uid, Epoch: 1, State: localdisk.Good}
	_, err := store.Make(one, []fleet.Disk{{Name: "root", Format: "raw", Size: 1 << 60}}, empty)
	if fleet.CodeOf(err) != fleet.Exhausted || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("too large: %v", err)
	}
	broken := errors.New("broken")
	if _, err := store.Make(one, disks, func(string, string, fleet.Bytes) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("broken: %v", err)
	}
	if _, err := store.Make(one, []fleet.Disk{{Name: "../x", Format: "raw", Size: 1}}, empty); err == nil {
		t.Error("a name leads elsewhere")
	}
	put(t, store, 1, localdisk.Filling)
	made := put(t, store, 1, localdisk.Good)
	if _, err := store.Make(one, disks, empty); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("made over what is good: %v", err)
	}
	if err := store.Remove(made); err != nil {
		t.Error(err)
	}
	one.UID = "../../x"
	if _, err := store.Make(one, disks, empty); fleet.CodeOf(err) != fleet.Invalid {
		t.Errorf("a uid leads elsewhere: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
