package qemu_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qemu"
)

const localSize = 64 * fleet.MiB

// local makes an instance's own disks, each with its first half written and a hole
// after it, and describes the instance.
func local(t *testing.T, binary string, formats ...string) qemu.Config {
	t.Helper()
	c := config(t, binary)
	for n, format := range formats {
		disk := qemu.Disk{Name: fmt.Sprintf("d%d", n), Path: filepath.Join(c.Dir, fmt.Sprint("disk", n)), Format: format, Local: true}
		if err := qemu.CreateImage(within(t), binary, c.Dir, disk.Path, format, localSize); err != nil {
			t.Fatal(err)
		}
		c.Disks = append(c.Disks, disk)
	}
	return c
}

// guestIO has a disk of an instance do what a guest's driver would.
func guestIO(t *testing.T, i *qemu.Instance, disk int, command string) {
	t.Helper()
	line := map[string]string{"command-line": fmt.Sprintf("qemu-io -d /machine/peripheral/disk%d-card/virtio-backend %q", disk, command)}
	var said string
	if err := i.Monitor().Execute(within(t), "human-monitor-command", line, &said); err != nil || strings.Contains(said, "rror") {
		t.Fatalf("%s: %q, %v", command, said, err)
	}
}

// moving is a source with local disks, and its target.
type moving struct {
	source, target *qemu.Instance
	ca             *authority
	to             qemu.Mirroring
	out            qemu.Outgoing
}

func startMoving(t *testing.T, binary string, formats ...string) *moving {
	t.Helper()
	m := &moving{source: start(t, local(t, binary, formats...)), ca: newAuthority(t)}
	m.retarget(t, local(t, binary, formats...))
	return m
}

// retarget gives the source a target of which there is that configuration.
func (m *moving) retarget(t *testing.T, c qemu.Config) {
	t.Helper()
	c.Incoming = true
	m.target = start(t, c)
	in := qemu.Incoming{Listen: loopback, CredsDir: m.ca.creds(t, "h2"), PeerName: "O=fleet,CN=h1"}
	port, err := m.target.Listen(within(t), in)
	if err != nil {
		t.Fatal(err)
	}
	export, err := m.target.Export(within(t), in)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := m.target.Export(within(t), in); err != nil || again != export || export == port {
		t.Fatalf("exported at %d, again at %d, %v; it listens at %d", export, again, err, port)
	}
	creds := m.ca.creds(t, "h1")
	m.to = qemu.Mirroring{Address: netip.AddrPortFrom(loopback, export), CredsDir: creds, TLSHostname: "h2"}
	m.out = qemu.Outgoing{Address: netip.AddrPortFrom(loopback, port), CredsDir: creds, TLSHostname: "h2", DowntimeLimit: time.Second}
}

// mirrored waits until all mirrors are as wanted.
func mirrored(t *testing.T, i *qemu.Instance, want func(qemu.Mirror) bool) []qemu.Mirror {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		mirrors, err := i.Mirrors(within(t))
		if err != nil {
			t.Fatal(err)
		}
		all := true
		for _, one := range mirrors {
			all = all && want(one)
		}
		if all && len(mirrors) > 0 {
			return mirrors
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("the mirrors are %+v", mirrors)
		}
	}
}

// content gives all that is in the image of an instance that has ended.
func content(t *testing.T, disk qemu.Disk) []byte {
	t.Helper()
	if disk.Format == "raw" {
		data, err := os.ReadFile(disk.Path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	raw := filepath.Join(t.TempDir(), "raw")
	if out, err := exec.CommandContext(within(t), "qemu-img", "convert", "-f", disk.Format, "-O", "raw", disk.Path, raw).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return content(t, qemu.Disk{Path: raw, Format: "raw"})
}

// room gives how much of a disk the image takes.
func room(t *testing.T, disk qemu.Disk) fleet.Bytes {
	t.Helper()
	var stat syscall.Stat_t
	if err := syscall.Stat(disk.Path, &stat); err != nil {
		t.Fatal(err)
	}
	return fleet.Bytes(stat.Blocks * 512)
}

// The disks go with the guest, with all that it writes meanwhile, and what it has
// not written, or given up, takes no room at the target.
func TestMirror(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		m := startMoving(t, binary, "raw", "qcow2")
		resume(t, m.source)
		for disk := range 2 {
			guestIO(t, m.source, disk, "write -P 17 0 16M")
			guestIO(t, m.source, disk, "write -P 18 32M 8M")
			guestIO(t, m.source, disk, "discard 2M 1M")
			guestIO(t, m.source, disk, "write -P 0 6M 1M")
		}
		m.mirror(t)
		m.handOver(t)
		resume(t, m.target)
		guestIO(t, m.target, 0, "read -P 18 32M 4k")
		guestIO(t, m.target, 1, "write -P 99 60M 4k")
		kill(t, m.source)
		kill(t, m.target)
		for disk := range 2 {
			before, after := m.source.Config().Disks[disk], m.target.Config().Disks[disk]
			want, got := content(t, before), content(t, after)
			if disk == 1 {
				copy(want[60*fleet.MiB:], bytes.Repeat([]byte{99}, 4096))
			}
			if !bytes.Equal(want, got) {
				t.Errorf("disk %d differs", disk)
			}
			if used := room(t, after); used > 23*fleet.MiB || used < 20*fleet.MiB { // of 24 that were written, two are empty again
				t.Errorf("disk %d takes %v, before %v", disk, used, room(t, before))
			}
		}
	})
}

// A guest is stopped and its disks' copy ended at once: the target has all of it, or it
// is said that it has not.
func TestStopMirrored(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		m := startMoving(t, binary, "raw", "qcow2")
		resume(t, m.source)
		guestIO(t, m.source, 0, "write -P 17 0 16M")
		m.mirror(t)
		m.stopInStep(t)
		if stay := !mirrored(t, m.source, func(one qemu.Mirror) bool { return one.Synced || one.Ended })[0].Ended; stay != tellsOfSteps(m.source) {
			t.Errorf("its mirrors stay in step: %v", stay)
		}
		kill(t, m.source)
		kill(t, m.target)
		for n, disk := range m.source.Config().Disks {
			if !bytes.Equal(content(t, disk), content(t, m.target.Config().Disks[n])) {
				t.Errorf("disk %d differs", n)
			}
		}

		m = startMoving(t, binary, "raw")
		m.to.BandwidthMax = 1 << 20
		resume(t, m.source)
		guestIO(t, m.source, 0, "write -P 17 0 16M")
		m.begin(t)
		finished, err := m.source.StopMirrored(within(t))
		if err != nil {
			t.Fatal(err)
		}
		status(t, m.source, "paused")
		if err := finished(within(t)); err == nil || !strings.Contains(err.Error(), "not copied in full") {
			t.Errorf("finished in the copy: %v", err)
		}
	})
}

// mirror copies the disks, and writes meanwhile.
func (m *moving) mirror(t *testing.T) {
	t.Helper()
	if err := m.source.StartMirrors(within(t), m.to); err != nil {
		t.Fatal(err)
	}
	m.writeAbout(t, 20)
	mirrored(t, m.source, func(one qemu.Mirror) bool { return one.Ready })
	if err := m.source.SyncMirrors(within(t)); err != nil {
		t.Fatal(err)
	}
	m.writeAbout(t, 20)
	mirrored(t, m.source, func(one qemu.Mirror) bool { return one.Synced })
}

func (m *moving) writeAbout(t *testing.T, times int) {
	for n := range times {
		for disk := range m.source.Config().Disks {
			at := 8<<20 + rand.IntN(8<<20)&^511
			guestIO(t, m.source, disk, fmt.Sprintf("write -P %d %d %d", 20+n, at, 512*(1+rand.IntN(32))))
		}
	}
}

// handOver does so, up to the point at which the target may run.
func (m *moving) handOver(t *testing.T) {
	t.Helper()
	fromSource, fromTarget := subscribe(t, m.source), subscribe(t, m.target)
	send(t, m.source, m.out)
	await(t, fromSource, qemu.Event{Kind: qemu.Stopped})
	began := time.Now()
	if err := m.source.FinishMirrors(within(t)); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	await(t, fromSource, changed(qemu.StatusPreSwitchover))
	if err := m.source.ContinueSwitch(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, fromTarget, changed(qemu.StatusCompleted))
	began = time.Now()
	if err := m.target.EndExports(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Logf("mirrors finished in %v, exports ended in %v", took, time.Since(began))
	await(t, fromSource, changed(qemu.StatusCompleted))
	for range 2 {
		if err := errors.Join(m.target.EndExports(within(t)), m.target.StopExporting(within(t))); err != nil {
			t.Errorf("ended again: %v", err)
		}
	}
}

func kill(t *testing.T, i *qemu.Instance) {
	t.Helper()
	if err := i.Kill(within(t)); err != nil {
		t.Fatal(err)
	}
}
