package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/bootsector"
)

// bootDisk writes a disk that a guest boots from.
func bootDisk(t *testing.T, dir string, code []byte) *godwitv1.Disk {
	t.Helper()
	path, err := bootsector.WriteDisk(dir, code)
	if err != nil {
		t.Fatal(err)
	}
	return &godwitv1.Disk{Name: "root", Kind: "file", Path: path, Format: "raw"}
}

const (
	testVM      = "web1"
	testUID     = "6b1d5a0c-6d3f-4f0e-9a55-0c5f0d1f8a11"
	testNetwork = "blue"
	testVNI     = 100
	testMTU     = 1450
	testMAC     = "52:54:00:77:00:01"
	testTunnel  = 9
)

// firmware describes an instance with one port and nothing to boot.
func firmware(epoch fleet.Epoch) *godwitv1.Instance {
	return &godwitv1.Instance{
		Vm: testVM, Uid: testUID, Epoch: uint64(epoch),
		Spec: &godwitv1.VMSpec{
			Cpus: 1, MemoryBytes: uint64(64 * fleet.MiB), Machine: "pc", CpuModel: "qemu64",
			Ports: []*godwitv1.Port{{Name: "net0", Network: testNetwork, Mac: testMAC, Queues: 1}},
		},
		Networks: []*godwitv1.PortNetwork{{Port: "net0", Vni: testVNI, Mtu: testMTU}},
	}
}

// booting describes one that boots the given code.
func booting(t *testing.T, f *testFleet, epoch fleet.Epoch, code []byte) *godwitv1.Instance {
	t.Helper()
	instance := firmware(epoch)
	instance.Spec.Disks = []*godwitv1.Disk{bootDisk(t, f.dir, code)}
	return instance
}

func startCommand(sequence uint64, instance *godwitv1.Instance) *godwitv1.Command {
	return &godwitv1.Command{
		Subject: instance.GetVm(), Epoch: instance.GetEpoch(), Sequence: sequence,
		Op: &godwitv1.Command_StartInstance{StartInstance: &godwitv1.StartInstance{Instance: instance}},
	}
}

func stopCommand(sequence uint64, epoch fleet.Epoch, grace time.Duration) *godwitv1.Command {
	return &godwitv1.Command{
		Subject: testVM, Epoch: uint64(epoch), Sequence: sequence,
		Op: &godwitv1.Command_StopInstance{StopInstance: &godwitv1.StopInstance{Vm: testVM, GraceMs: grace.Milliseconds()}},
	}
}

func forgetCommand(sequence uint64, epoch fleet.Epoch) *godwitv1.Command {
	return &godwitv1.Command{
		Subject: testVM, Epoch: uint64(epoch), Sequence: sequence,
		Op: &godwitv1.Command_ForgetInstance{ForgetInstance: &godwitv1.ForgetInstance{Vm: testVM, Epoch: uint64(epoch)}},
	}
}

// run starts an instance, which must succeed.
func (h *testHost) run(instance *godwitv1.Instance) {
	h.t.Helper()
	answer := h.do(startCommand(1, instance))
	if got := answer.GetInstance(); got.GetState() != "running" {
		h.t.Fatalf("start: %v", got)
	}
}

// awaitGuest waits until the guest has said hello. QEMU's log of the console
// is a file, which tells nobody that it grows.
func (h *testHost) awaitGuest(epoch fleet.Epoch) {
	h.t.Helper()
	log := filepath.Join(h.agent.instanceDir(machineKey{testVM, epoch}), "console.log")
	waitFor(h.t, "the guest's hello", func() bool {
		text, err := os.ReadFile(log)
		return err == nil && strings.Contains(string(text), "!")
	})
}

// waitFor polls where nothing tells of the event.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-timeout.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func checkContains(t *testing.T, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%q does not say %q", text, part)
	}
}
