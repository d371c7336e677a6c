package agent

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pki"
)

// compared makes the target of a move ask its source's agent.
func (m *move) compared(change func(*godwitv1.Instance)) *godwitv1.Command {
	c := m.prepareCommand()
	c.GetPrepareTarget().SourcePeerPort = testPeerPort
	change(c.GetPrepareTarget().GetInstance())
	return c
}

// refusal is what the target says of a preparation that it refuses.
func (m *move) refusal(command *godwitv1.Command) *godwitv1.TargetFailed {
	m.t.Helper()
	before := m.target.count(isTargetFailed)
	m.target.sendCommand(command)
	return m.target.awaitReports(before+1, "refusal", isTargetFailed).GetTargetFailed()
}

// copyOf gives another file with the same bytes, or more of them.
func copyOf(t *testing.T, path string, more int) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(other, append(data, make([]byte, more)...), 0o600); err != nil {
		t.Fatal(err)
	}
	return other
}

// readOnlyView gives the same file on a mount that is read-only.
func readOnlyView(t *testing.T, path string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(filepath.Dir(path), dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, filepath.Base(path))
}

// linkOf gives the same file by another path.
func linkOf(t *testing.T, path string) string {
	t.Helper()
	link := path + "-link"
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	return link
}

// A target that does not see the image of its source is refused before it has made
// anything, and the guest at the source hears nothing of it.
func TestTargetSeesTheImage(t *testing.T) {
	m := newMove(t)
	path := m.instance.GetSpec().GetDisks()[0].GetPath()
	refused := func(what, why string, change func(*godwitv1.Instance)) {
		t.Run(what, func(t *testing.T) {
			failed := m.refusal(m.compared(change))
			checkContains(t, failed.GetCause(), why)
			checkContains(t, failed.GetCause(), "root")
			if failed.GetHint() == "" {
				t.Error("it does not say what to do")
			}
			m.target.checkNothingLeft()
			m.source.checkRunState(testVM, 1, "running")
			m.source.checkGates("after "+what, network.Pass)
		})
	}
	other := copyOf(t, path, 0)
	refused("a copy", other+" on h2 is not the file that h1 has as "+path, func(i *godwitv1.Instance) { i.Spec.Disks[0].Path = other })
	refused("no such disk", "the instance on h1 has no such disk", func(i *godwitv1.Instance) { i.Spec.Disks[0].Name = "root2" })
	refused("no file", "no such file", func(i *godwitv1.Instance) { i.Spec.Disks[0].Path = other + "-not" })
	sealed := readOnlyView(t, path)
	refused("a read-only file system", "open disk root: open "+sealed+": read-only file system", func(i *godwitv1.Instance) { i.Spec.Disks[0].Path = sealed })
	link := linkOf(t, path)
	prepared := m.target.do(m.compared(func(i *godwitv1.Instance) { i.Spec.Disks[0].Path = link }))
	if prepared.GetTargetPrepared() == nil {
		t.Errorf("the same file by another path: %v", prepared)
	}
	if answer := m.target.do(m.releaseCommand()); answer.GetTargetReleased() == nil {
		t.Errorf("release: %v", answer)
	}
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	refused("an image that was replaced", "another file than its QEMU has open", func(*godwitv1.Instance) {})
}

// Of an image that nobody writes each host may have a copy of its own.
func TestTargetHasACopyOfAReadOnlyImage(t *testing.T) {
	f, hosts := newFleet(t, "h1", "h2")
	m := f.moveOf(hosts)
	m.booting = func(epoch fleet.Epoch) *godwitv1.Instance {
		i := booting(t, f, epoch, bootsector.Busy())
		i.Spec.Disks[0].ReadOnly = true
		return i
	}
	m.instance = m.booting(1)
	m.source.run(m.instance)
	path := m.instance.GetSpec().GetDisks()[0].GetPath()
	longer, same := copyOf(t, path, 512), copyOf(t, path, 0)
	failed := m.refusal(m.compared(func(i *godwitv1.Instance) { i.Spec.Disks[0].Path = longer }))
	checkContains(t, failed.GetCause(), "bytes on h1 and")
	prepared := m.target.do(m.compared(func(i *godwitv1.Instance) { i.Spec.Disks[0].Path = same }))
	if prepared.GetTargetPrepared() == nil {
		t.Errorf("a copy: %v", prepared)
	}
}

// Who asks for what is not here, or is no host, is shown nothing.
func TestShowInstanceRefuses(t *testing.T) {
	own := &machine{key: machineKey{"web1", 2}, uid: "u1"}
	s := peerService{&Agent{config: Config{Name: "h1"}, machines: map[machineKey]*machine{own.key: own}}}
	host := pki.Identity{Kind: pki.Host, Name: "h2"}
	for _, c := range []struct {
		what string
		who  pki.Identity
		vm   string
		at   uint64
		uid  string
		want fleet.Code
	}{
		{"a server", pki.Identity{Kind: pki.Server, Name: "s1"}, "web1", 2, "u1", fleet.Denied},
		{"of another VM", host, "web2", 2, "u1", fleet.NotFound},
		{"of another epoch", host, "web1", 3, "u1", fleet.NotFound},
		{"of one that had the name", host, "web1", 2, "u2", fleet.NotFound},
		{"of one that is not held yet", host, "web1", 2, "u1", fleet.Unavailable},
	} {
		err := s.ShowInstance(calledBy(t, c.who), &godwitv1.ShowInstanceRequest{Vm: c.vm, Epoch: c.at, Uid: c.uid}, nil)
		if fleet.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %s", c.what, err, c.want)
		}
	}
}
