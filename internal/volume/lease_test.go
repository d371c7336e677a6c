package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"godwit.dev/godwit/internal/durable/durabletest"
	"godwit.dev/godwit/internal/fleet"
)

// key gives a secret that only one grant has.
func key(epoch fleet.Epoch, host fleet.HostName) []byte {
	return fmt.Appendf(nil, "a key of 16 bytes or more for %s at %d", host, epoch)
}

func standbyOf(epoch fleet.Epoch, host fleet.HostName) Standby {
	return Standby{Epoch: epoch, Host: host, Key: HashKey(key(epoch, host))}
}

// held gives a lease that a host has activated.
func held(t *testing.T, epoch fleet.Epoch, host fleet.HostName) Lease {
	t.Helper()
	granted, err := Lease{}.Grant(standbyOf(epoch, host))
	if err != nil {
		t.Fatal(err)
	}
	lease, err := granted.Activate(epoch, host, key(epoch, host))
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

func TestLeaseChanges(t *testing.T) {
	at5 := held(t, 5, "h1")
	waiting, err := at5.Grant(standbyOf(6, "h2"))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		from   Lease
		change func(Lease) (Lease, error)
		want   fleet.Code
	}{
		"grant that is repeated late": {at5, grant(standbyOf(5, "h1")), ""},
		"grant of the present epoch":  {at5, grant(standbyOf(5, "h2")), fleet.Conflict},
		"the same with another key":   {at5, grant(Standby{Epoch: 5, Host: "h1", Key: HashKey(key(5, "h2"))}), fleet.Conflict},
		"grant of a released epoch":   {at5.Release(5, ""), grant(standbyOf(5, "h1")), fleet.Conflict},
		"grant of an older epoch":     {at5, grant(standbyOf(4, "h1")), fleet.Conflict},
		"grant of epoch 0":            {Lease{}, grant(standbyOf(0, "h1")), fleet.Invalid},
		"grant to no host":            {at5, grant(standbyOf(6, "")), fleet.Invalid},
		"grant without a key":         {at5, grant(Standby{Epoch: 6, Host: "h2"}), fleet.Invalid},
		"grant of several epochs":     {waiting, grant(standbyOf(9, "h3")), ""},
		"activation":                  {waiting, activate(6, "h2", key(6, "h2")), ""},
		"repetition":                  {at5, activate(5, "h1", key(5, "h1")), ""},
		"repetition with another key": {at5, activate(5, "h1", key(5, "h2")), fleet.Conflict},
		"activation by another host":  {waiting, activate(6, "h1", key(6, "h2")), fleet.Denied},
		"activation with a wrong key": {waiting, activate(6, "h2", key(6, "h3")), fleet.Denied},
		"activation without a key":    {waiting, activate(6, "h2", nil), fleet.Denied},
		"without standby":             {at5, activate(6, "h2", key(6, "h2")), fleet.Conflict},
		"of another's present epoch":  {at5, activate(5, "h2", key(5, "h2")), fleet.Conflict},
		"of an older epoch":           {at5, activate(4, "h1", key(4, "h1")), fleet.Conflict},
		"of a released epoch":         {at5.Release(5, ""), activate(5, "h1", key(5, "h1")), fleet.Conflict},
	} {
		got, err := test.change(test.from)
		if code := fleet.CodeOf(err); code != test.want {
			t.Errorf("%s: %v, want code %q", name, err, test.want)
		}
		if err != nil && !got.equal(test.from) {
			t.Errorf("%s: refused, and changed to %+v", name, got)
		}
	}
}

func grant(s Standby) func(Lease) (Lease, error) {
	return func(l Lease) (Lease, error) { return l.Grant(s) }
}

func activate(epoch fleet.Epoch, host fleet.HostName, key []byte) func(Lease) (Lease, error) {
	return func(l Lease) (Lease, error) { return l.Activate(epoch, host, key) }
}

// A grant of the same epoch takes the earlier one's place: the target of a
// migration that was aborted loses its right.
func TestGrantReplaces(t *testing.T) {
	lease, err := held(t, 5, "h1").Grant(standbyOf(6, "h2"))
	if err != nil {
		t.Fatal(err)
	}
	if lease, err = lease.Grant(standbyOf(6, "h3")); err != nil {
		t.Fatal(err)
	}
	if lease.rightOf(Peer{Host: "h2"}, 6) != none || lease.rightOf(Peer{Host: "h3"}, 6) != standby {
		t.Errorf("%+v", lease)
	}
	if _, err := lease.Activate(6, "h2", key(6, "h2")); fleet.CodeOf(err) != fleet.Denied {
		t.Errorf("the first one is still good: %v", err)
	}
}

// A release that names the grant it means ends no other, however late it comes.
func TestReleaseOfOneGrant(t *testing.T) {
	first, second := standbyOf(6, "h2"), standbyOf(6, "h3")
	lease, err := held(t, 5, "h1").Grant(second)
	if err != nil {
		t.Fatal(err)
	}
	active, err := lease.Activate(6, "h3", key(6, "h3"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []Lease{lease, active} {
		if got := l.Release(6, first.Key); !got.equal(l) {
			t.Errorf("the release of an earlier grant left %+v of %+v", got, l)
		}
		if got := l.Release(6, second.Key); got.rightOf(Peer{Host: "h3"}, 6) != none {
			t.Errorf("its own left %+v of %+v", got, l)
		}
	}
}

func TestStandbysAreBounded(t *testing.T) {
	lease := held(t, 1, "h1")
	for epoch := fleet.Epoch(2); ; epoch++ {
		next, err := lease.Grant(standbyOf(epoch, "h2"))
		if fleet.CodeOf(err) == fleet.Exhausted {
			break
		}
		if err != nil || epoch > 100 {
			t.Fatal(epoch, err)
		}
		lease = next
	}
	if _, err := encodeSlot(1, lease); err != nil {
		t.Error(err)
	}
	if next, err := lease.Activate(4, "h2", key(4, "h2")); err != nil || len(next.Standbys) != maxStandbys-3 {
		t.Errorf("%v, left %+v", err, next.Standbys)
	}
}

// Whatever is asked for in whatever order: nobody's epoch comes back, only one
// may write, and whoever may write had the key.
func TestLeaseProperties(t *testing.T) {
	hosts := []fleet.HostName{"h1", "h2", "h3"}
	rapid.Check(t, func(t *rapid.T) {
		var lease Lease
		over := make(map[fleet.Epoch]bool) // epochs whose right has ended
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			epoch := fleet.Epoch(rapid.IntRange(0, 6).Draw(t, "epoch"))
			host := rapid.SampledFrom(hosts).Draw(t, "host")
			before := lease
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				lease, _ = lease.Grant(standbyOf(epoch, host))
			case 1:
				lease, _ = lease.Activate(epoch, host, key(epoch, rapid.SampledFrom(hosts).Draw(t, "key")))
			case 2:
				lease = lease.Release(epoch, "")
			}
			if before.Holder != "" && (lease.Holder != before.Holder || lease.Epoch != before.Epoch) {
				over[before.Epoch] = true
			}
			checkLease(t, lease, before, over, hosts)
		}
	})
}

func checkLease(t *rapid.T, lease, before Lease, over map[fleet.Epoch]bool, hosts []fleet.HostName) {
	if lease.Epoch < before.Epoch {
		t.Fatalf("epoch %d after %d", lease.Epoch, before.Epoch)
	}
	writers := 0
	for epoch := range fleet.Epoch(8) {
		for _, host := range hosts {
			right := lease.rightOf(Peer{Host: host}, epoch)
			if right == active {
				writers++
			}
			if right == active && before.rightOf(Peer{Host: host}, epoch) == none {
				t.Fatalf("host %s writes at %d without having stood by", host, epoch)
			}
			if right != none && over[epoch] {
				t.Fatalf("epoch %d is back: %+v", epoch, lease)
			}
		}
	}
	operator := lease.rightOf(Peer{Operator: true}, 0) == active
	if writers > 1 || operator == (writers > 0) {
		t.Fatalf("%d hosts may write, an operator: %v", writers, operator)
	}
}

// A save that is torn at any byte leaves the old lease or the new one.
func TestTornSave(t *testing.T) {
	path := filepath.Join(t.TempDir(), leaseName)
	if err := createLeaseFile(path); err != nil {
		t.Fatal(err)
	}
	file, _, err := openLeaseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old, next := held(t, 5, "h1"), held(t, 6, "h2")
	for _, lease := range []Lease{held(t, 4, "h3"), old} {
		if err := file.save(lease); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := file.save(next); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = file.file.Close()
	news := 0
	for torn := 0; torn <= len(after); torn += 29 {
		if err := os.WriteFile(path, append(append([]byte{}, after[:torn]...), before[torn:]...), 0o600); err != nil {
			t.Fatal(err)
		}
		again, lease, err := openLeaseFile(path)
		if err != nil {
			t.Fatalf("torn at %d: %v", torn, err)
		}
		_ = again.file.Close()
		switch {
		case lease.equal(next):
			news++
		case !lease.equal(old):
			t.Fatalf("torn at %d: %+v", torn, lease)
		}
	}
	if news == 0 {
		t.Error("the new lease was never found")
	}
}

// A lease that was read is one that the disk has, also if the process that wrote
// it was killed before it had made sure.
func TestLeaseReadIsDurable(t *testing.T) {
	disk := durabletest.NewDisk(t)
	path := filepath.Join(disk.Dir, leaseName)
	if err := createLeaseFile(path); err != nil {
		t.Fatal(err)
	}
	open := func() (*leaseFile, Lease) {
		t.Helper()
		file, lease, err := openLeaseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return file, lease
	}
	file, _ := open()
	want := held(t, 5, "h1")
	slot, err := encodeSlot(file.sequence+1, want)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.file.WriteAt(slot, int64((file.sequence+1)%2)*slotSize); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"killed before the sync", "and started again, before the power was cut"} {
		_ = file.file.Close()
		if when != "killed before the sync" {
			disk.CutPower()
		}
		var got Lease
		if file, got = open(); !got.equal(want) {
			t.Errorf("%s: %+v", when, got)
		}
	}
	_ = file.file.Close()
}

// Who may write is not guessed.
func TestLeaseFileWithoutALease(t *testing.T) {
	path := filepath.Join(t.TempDir(), leaseName)
	for _, content := range [][]byte{nil, make([]byte, slotSize), make([]byte, 2*slotSize)} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, lease, err := openLeaseFile(path); err == nil {
			t.Errorf("%d zeroes give %+v", len(content), lease)
		}
	}
}
