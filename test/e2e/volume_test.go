package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
	"godwit.dev/godwit/internal/lab/witness"
	"godwit.dev/godwit/internal/pki"
)

const (
	volumeSize = 64 * fleet.MiB
	// staleAt is where the stale writer writes: after the records of any test.
	staleAt = volumeSize - fleet.MiB
)

// A VM with a volume moves, and nothing that it wrote is lost; what its old host may
// still write is refused. A volume server that is away only holds the guest up, and
// aborts a migration.
func TestVolume(t *testing.T) {
	f := newFleet(t, func(c *fleetlab.Config) {
		c.Hosts, c.VolumeServers = []fleetlab.Host{{Name: "h1"}, {Name: "h2"}}, []string{"v1"}
	})
	v := f.VolumeServer("v1")
	t.Cleanup(func() {
		if text, err := v.Log(); err == nil && t.Failed() {
			t.Logf("volume server:\n%s", text)
		}
	})
	disk, err := v.Disk(t.Context(), "web1", volumeSize)
	if err != nil {
		t.Fatal(err)
	}
	g := boot(t, f, fleetlab.GuestConfig{Records: 50, Disks: []*godwitv1.Disk{disk}})
	awaitRecords(t, g, 50)
	if got := leasesOf(t, v, "web1"); got != "h1@1" {
		t.Errorf("after the start it is %s", got)
	}
	stale := openStale(t, f, v, "h1", "web1@1")
	stale.write(0x11)
	stale.answer(t, true)
	stale.signal(t, syscall.SIGSTOP)
	stale.write(0x22) // done when it wakes up

	c := call(t, f, g, probe.UDPConfig{Rate: 200})
	m := migrate(t, f, g, "h2", "succeeded")
	c.end(t)
	t.Logf("%v", m.GetOutcome())
	if got := leasesOf(t, v, "web1"); got != "h2@2" {
		t.Errorf("after the migration it is %s", got)
	}
	stale.signal(t, syscall.SIGCONT)
	stale.answer(t, false)
	stale.write(0x33)
	stale.answer(t, false)
	awaitRecords(t, g, 50)

	if err := v.Kill(); err != nil {
		t.Fatal(err)
	}
	m = migrate(t, f, g, "h1", "aborted")
	if !strings.Contains(m.GetCause(), "volume server v1") {
		t.Errorf("the cause is %s", m.GetCause())
	}
	if err := v.Start(); err != nil {
		t.Fatal(err)
	}
	awaitRecords(t, g, 50)
	migrate(t, f, g, "h1", "succeeded")
	awaitRecords(t, g, 50)
	if got := leasesOf(t, v, "web1"); got != "h1@3" {
		t.Errorf("after the way back it is %s", got)
	}
	if data := readVolume(t, v, "web1"); !bytes.Equal(data[staleAt:staleAt+512], bytes.Repeat([]byte{0x11}, 512)) {
		t.Errorf("what was written by an older lease is % x…", data[staleAt:staleAt+8])
	}
	if _, err := f.API.VM.Stop(t.Context(), &godwitv1.StopVMRequest{Name: g.Name}); err != nil {
		t.Fatal(err)
	}
	if err := g.AwaitEnd(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitLeases(t, v, "web1", "")
	checkRecords(t, readVolume(t, v, "web1"))
}

// leasesOf gives who holds a volume, and who stands by.
func leasesOf(t *testing.T, v *fleetlab.VolumeServer, volume string) (text string) {
	t.Helper()
	list, err := v.API.List(t.Context(), &godwitv1.ListVolumesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range list.GetVolumes() {
		if one.GetName() != volume {
			continue
		}
		if one.GetHolder() != "" {
			text = fmt.Sprintf("%s@%d", one.GetHolder(), one.GetEpoch())
		}
		for _, standby := range one.GetStandbys() {
			text += fmt.Sprintf(" (%s@%d)", standby.GetHost(), standby.GetEpoch())
		}
	}
	return text
}

func awaitLeases(t *testing.T, v *fleetlab.VolumeServer, volume, want string) {
	t.Helper()
	until := time.Now().Add(migrateWithin)
	for got := leasesOf(t, v, volume); got != want; got = leasesOf(t, v, volume) {
		if time.Now().After(until) {
			t.Fatalf("volume %s is %q, want %q", volume, got, want)
		}
	}
}

// awaitRecords waits until the guest has written some more records.
func awaitRecords(t *testing.T, g *fleetlab.Guest, more uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	var first uint64
	for {
		status, err := g.Probe().Status(ctx)
		if err != nil {
			if ctx.Err() != nil {
				t.Fatalf("the guest writes no more: %v", err)
			}
			continue
		}
		if status.Disks[0].Errors > 0 {
			t.Fatalf("the guest saw errors of its disk: %s", status.Disks[0].LastError)
		}
		if first == 0 {
			first = max(1, status.Disks[0].Written)
		}
		if status.Disks[0].Written >= first+more {
			return
		}
	}
}

func readVolume(t *testing.T, v *fleetlab.VolumeServer, volume string) []byte {
	t.Helper()
	data, err := os.ReadFile(v.Path(volume))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// checkRecords demands every record of one boot up to the last, each whole.
func checkRecords(t *testing.T, data []byte) {
	t.Helper()
	var boot uint64
	sequence := uint64(1)
	for ; ; sequence++ {
		at := sequence * witness.BlockSize
		record, err := witness.ParseRecord(data[at : at+witness.BlockSize])
		if err != nil {
			break
		}
		if sequence == 1 {
			boot = record.Boot
		}
		if record.Sequence != sequence || record.Boot != boot {
			t.Errorf("record %d is %d of boot %d, not of %d", sequence, record.Sequence, record.Boot, boot)
		}
	}
	for later := sequence + 1; later*witness.BlockSize < uint64(staleAt); later++ {
		if _, err := witness.ParseRecord(data[later*witness.BlockSize : (later+1)*witness.BlockSize]); err == nil {
			t.Fatalf("record %d is lost: there is %d", sequence, later)
		}
	}
	if sequence < 200 {
		t.Errorf("only %d records", sequence-1)
	}
	t.Logf("%d records", sequence-1)
}

// staleWriter is a writer on the old host that wakes up when the VM has moved.
type staleWriter struct {
	process *os.Process
	in      io.WriteCloser
	out     *bufio.Scanner
}

// openStale opens an export as a host's QEMU does.
func openStale(t *testing.T, f *fleetlab.Fleet, v *fleetlab.VolumeServer, host, export string) *staleWriter {
	t.Helper()
	credentials, err := pki.Load(filepath.Join(f.AgentDir(host), "certificate"))
	if err != nil {
		t.Fatal(err)
	}
	creds := t.TempDir()
	if err := credentials.WriteQEMUCreds(creds); err != nil {
		t.Fatal(err)
	}
	cmd := f.Lab.Host(host).Command(t.Context(), "qemu-io", "--object", "tls-creds-x509,id=tls,endpoint=client,dir="+creds,
		"--image-opts", fmt.Sprintf("driver=nbd,host=%s,port=10809,export=%s,tls-creds=tls,tls-hostname=%s", v.Addr, export, pki.VolumeServerName(v.Name)))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip("needs qemu-io, which make setup installs:", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGCONT); _ = in.Close(); _ = cmd.Wait() })
	return &staleWriter{cmd.Process, in, bufio.NewScanner(out)}
}

// signal stops it, or lets it go on.
func (s *staleWriter) signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := s.process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// write has it write a pattern.
func (s *staleWriter) write(pattern byte) {
	fmt.Fprintf(s.in, "write -f -P %d %d 512\n", pattern, uint64(staleAt))
}

// answer demands that what it was to write is written, or refused.
func (s *staleWriter) answer(t *testing.T, allowed bool) {
	t.Helper()
	for s.out.Scan() {
		line := s.out.Text()
		switch {
		case strings.Contains(line, "wrote 512/512"):
			if !allowed {
				t.Errorf("a write by an older lease was done: %s", line)
			}
			return
		case strings.Contains(line, "failed"):
			if allowed {
				t.Errorf("a write by the present lease was refused: %s", line)
			}
			return
		}
	}
	t.Errorf("qemu-io has ended: %v", s.out.Err())
}
