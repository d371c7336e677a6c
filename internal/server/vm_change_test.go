package server

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

func fileDisk(name string) *godwitv1.Disk {
	return &godwitv1.Disk{Name: name, Kind: "file", Path: "/srv/" + name, Format: "raw"}
}

// changedBy answers a change of the hardware; a code says that it has failed.
func (a *fakeAgent) changedBy(command *godwitv1.Command, code fleet.Code, cause string) {
	change := command.GetChangeHardware()
	a.say(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Report{Report: &godwitv1.Report{
		Subject: command.GetSubject(), Epoch: command.GetEpoch(), Sequence: command.GetSequence(),
		Event: &godwitv1.Report_HardwareChanged{HardwareChanged: &godwitv1.HardwareChanged{
			Slot: max(change.GetDisk().GetSlot(), change.GetPort().GetSlot()), Removed: change.GetRemove(), Code: string(code), Cause: cause,
		}},
	}}})
}

func (f *testFleet) awaitChange(name string, state fleet.ChangeState) *godwitv1.VM {
	f.t.Helper()
	return f.awaitVM(name, "changed: "+string(state), func(vm *godwitv1.VM) bool { return vm.GetChange().GetState() == string(state) })
}

func disksOf(vm *godwitv1.VM) (names []string) {
	for _, disk := range vm.GetSpec().GetDisks() {
		names = append(names, disk.GetName())
	}
	return names
}

// A running VM has a disk when its host says so, and until then nothing else happens
// to it; what keeps its slot are the others.
func TestHotDisk(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.join("h2")
	f.running(h1, "web1")
	add := &godwitv1.AddDiskRequest{Name: "web1", Disk: fileDisk("data"), RequestId: "r1"}
	first, err := f.vms.AddDisk(t.Context(), add)
	if err != nil {
		t.Fatal(describe(err))
	}
	command := h1.command()
	if disk := command.GetChangeHardware().GetDisk(); disk.GetName() != "data" || disk.GetSlot() < uint32(fleet.FirstDiskSlot) {
		t.Fatalf("the host is told %v", command)
	}
	again, err := f.vms.AddDisk(t.Context(), add)
	if err != nil || !proto.Equal(first, again) {
		t.Errorf("the same request again: %v, %v", again, err)
	}
	_, err = f.migrate("web1", "h2")
	for what, err := range map[string]error{
		"another change": call(f.vms.AddDisk(t.Context(), &godwitv1.AddDiskRequest{Name: "web1", Disk: fileDisk("more")})),
		"a migration":    err,
	} {
		if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "add disk data") || fleet.RetryAfterOf(err) <= 0 {
			t.Errorf("%s: %v", what, err)
		}
	}
	if names := disksOf(f.vm("web1")); slices.Contains(names, "data") {
		t.Errorf("before the host's answer the disks are %v", names)
	}
	h1.changedBy(command, "", "")
	vm := f.awaitChange("web1", fleet.ChangeDone)
	if !slices.Contains(disksOf(vm), "data") {
		t.Errorf("after it the disks are %v", disksOf(vm))
	}

	if err := call(f.vms.RemoveDisk(t.Context(), &godwitv1.RemoveDiskRequest{Name: "web1", Disk: "data"})); err != nil {
		t.Fatal(err)
	}
	command = h1.command()
	h1.changedBy(command, fleet.Deadline, "the guest did not let go of it within 30s")
	vm = f.awaitChange("web1", fleet.ChangeFailed)
	if !strings.Contains(vm.GetChange().GetCause(), "did not let go") || !slices.Contains(disksOf(vm), "data") {
		t.Errorf("after a failed removal: %v", vm)
	}
	// The guest does so later.
	late := proto.Clone(command).(*godwitv1.Command)
	late.Sequence = 0
	h1.changedBy(late, "", "")
	if vm = f.awaitChange("web1", fleet.ChangeDone); slices.Contains(disksOf(vm), "data") {
		t.Errorf("after the removal the disks are %v", disksOf(vm))
	}
	if err := call(f.vms.RemoveDisk(t.Context(), &godwitv1.RemoveDiskRequest{Name: "web1", Disk: "data"})); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("removed again: %v", err)
	}
}

// What is pending is told again in the next session, and is done when the instance
// ends: then it is one of the record only.
func TestHotPortThroughTheEndOfTheInstance(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.network("blue", "10.20.0.0/24")
	f.running(h1, "web1")
	if err := call(f.vms.AddPort(t.Context(), &godwitv1.AddPortRequest{Name: "web1", Port: &godwitv1.Port{Name: "dmz", Network: "blue"}})); err != nil {
		t.Fatal(describe(err))
	}
	first := h1.command()
	h1.close()
	h1 = f.join("h1", func(o *agentOptions) {
		o.hello = func(hello *godwitv1.Hello) {
			hello.Instances = []*godwitv1.InstanceReport{{Vm: "web1", Uid: f.vm("web1").GetUid(), Epoch: 1, State: "running"}}
		}
	})
	if again := h1.command(); !proto.Equal(first, again) || again.GetChangeHardware().GetNetwork().GetVni() == 0 || again.GetChangeHardware().GetPort().GetMac() == "" {
		t.Errorf("told %v, and again %v", first, again)
	}
	h1.report(&godwitv1.Command{Epoch: 1}, "web1", "exited", "crashed")
	vm := f.awaitPhase("web1", fleet.VMFailed)
	if len(vm.GetSpec().GetPorts()) != 1 || vm.GetChange().GetState() != string(fleet.ChangeDone) {
		t.Fatalf("after the end it is %v", vm)
	}
	port := vm.GetSpec().GetPorts()[0]
	taken, err := f.server.tables.takenAddresses(t.Context(), "blue")
	if err != nil || taken[port.GetMac()].VM != "web1" {
		t.Errorf("the addresses are %v, %v", taken, err)
	}
	if err := call(f.vms.RemovePort(t.Context(), &godwitv1.RemovePortRequest{Name: "web1", Port: "dmz"})); err != nil {
		t.Fatal(err)
	}
	if taken, err = f.server.tables.takenAddresses(t.Context(), "blue"); err != nil || len(taken) != 0 {
		t.Errorf("after the removal the addresses are %v, %v", taken, err)
	}
}

func TestHotChangeThatFails(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.network("blue", "10.20.0.0/24")
	f.running(h1, "web1")
	for _, bad := range []*godwitv1.Disk{
		{Name: "data", Kind: "tape", Path: "/srv/data", Format: "raw"}, {Name: "data", Path: "data", Format: "raw"},
		{Name: "data", Kind: "volume", Server: "v9", Volume: "data"}, {Name: "Da ta", Path: "/srv/data", Format: "raw"},
	} {
		err := call(f.vms.AddDisk(t.Context(), &godwitv1.AddDiskRequest{Name: "web1", Disk: bad}))
		if fleet.CodeOf(err) != fleet.Invalid || len(fieldsOf(err)) == 0 || !strings.HasPrefix(fieldsOf(err)[0].Path, "disk.") {
			t.Errorf("%v: %s", bad, describe(err))
		}
	}
	local := &godwitv1.Disk{Name: "data", Kind: "local", Format: "raw", SizeBytes: 1 << 30}
	if err := call(f.vms.AddDisk(t.Context(), &godwitv1.AddDiskRequest{Name: "web1", Disk: local})); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("a local disk is added: %s", describe(err))
	}
	port := &godwitv1.AddPortRequest{Name: "web1", Port: &godwitv1.Port{Name: "dmz", Network: "blue"}}
	for range 2 { // what the first has taken is free again
		if err := call(f.vms.AddPort(t.Context(), port)); err != nil {
			t.Fatal(describe(err))
		}
		h1.changedBy(h1.command(), fleet.Failed, "no tap")
		if vm := f.awaitChange("web1", fleet.ChangeFailed); len(vm.GetSpec().GetPorts()) != 0 {
			t.Errorf("after a failure it has %v", vm.GetSpec().GetPorts())
		}
	}
	if taken, err := f.server.tables.takenAddresses(t.Context(), "blue"); err != nil || len(taken) != 0 {
		t.Errorf("the addresses are %v, %v", taken, err)
	}
}

// While a migration holds the VM its hardware does not change.
func TestHotChangeDuringAMigration(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	for name, ask := range map[string]func() error{
		"add": func() error {
			return call(f.vms.AddDisk(t.Context(), &godwitv1.AddDiskRequest{Name: "web1", Disk: fileDisk("data")}))
		},
		"remove": func() error {
			return call(f.vms.RemoveDisk(t.Context(), &godwitv1.RemoveDiskRequest{Name: "web1", Disk: "root"}))
		},
	} {
		if err := ask(); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), fl.id) || fleet.RetryAfterOf(err) <= 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	fl.await(migration.Copying)
}

// A volume that is added has its lease before the host is told, and none when it was
// removed.
func TestHotVolume(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	v := f.serveVolumes()
	f.running(h1, "web1")
	disk := &godwitv1.Disk{Name: "data", Kind: "volume", Server: "v1", Volume: "root"}
	add := func() error {
		return call(f.vms.AddDisk(t.Context(), &godwitv1.AddDiskRequest{Name: "web1", Disk: disk}))
	}
	if err := add(); err != nil {
		t.Fatal(describe(err))
	}
	command := h1.command()
	change := command.GetChangeHardware()
	if change.GetVolumeServer().GetName() != "v1" {
		t.Fatalf("the host is told %v", command)
	}
	v.check("while it is added", " (h1@1)")
	h1.changedBy(command, fleet.Failed, "no memory")
	f.awaitChange("web1", fleet.ChangeFailed)
	f.await("the release of what was not added", func() bool { return v.leases() == "" })

	if err := add(); err != nil {
		t.Fatal(describe(err))
	}
	command = h1.command()
	v.activate("h1", 1, command.GetChangeHardware().GetVolumeKey())
	h1.changedBy(command, "", "")
	f.awaitChange("web1", fleet.ChangeDone)
	v.check("with the disk", "h1@1")
	if err := call(f.vms.RemoveDisk(t.Context(), &godwitv1.RemoveDiskRequest{Name: "web1", Disk: "data"})); err != nil {
		t.Fatal(err)
	}
	h1.changedBy(h1.command(), "", "")
	f.await("the release", func() bool { return v.leases() == "" })
	if err := add(); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "epoch 1") {
		t.Errorf("added again at the same epoch: %v", err)
	}
}

// A volume server that is away fails a change of which the host does not know. One that
// the host may have carried out it is asked about, whether the volume server comes back
// or not.
func TestHotVolumeWithoutTheVolumeServer(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	v := f.serveVolumes()
	f.running(h1, "web1")
	add := &godwitv1.AddDiskRequest{Name: "web1", Disk: &godwitv1.Disk{Name: "data", Kind: "volume", Server: "v1", Volume: "root"}}
	v.stop()
	if err := call(f.vms.AddDisk(t.Context(), add)); err != nil {
		t.Fatal(describe(err))
	}
	if vm := f.awaitChange("web1", fleet.ChangeFailed); !strings.Contains(vm.GetChange().GetCause(), "volume server v1") {
		t.Errorf("the cause is %q", vm.GetChange().GetCause())
	}

	v.start()
	if err := call(f.vms.AddDisk(t.Context(), add)); err != nil {
		t.Fatal(describe(err))
	}
	first := h1.command()
	v.activate("h1", 1, first.GetChangeHardware().GetVolumeKey())
	h1.close() // before it could answer
	v.stop()
	h1 = f.join("h1", func(o *agentOptions) {
		o.hello = func(hello *godwitv1.Hello) {
			hello.Instances = []*godwitv1.InstanceReport{{Vm: "web1", Uid: f.vm("web1").GetUid(), Epoch: 1, State: "running"}}
		}
	})
	again := h1.command()
	if one, other := first.GetChangeHardware(), again.GetChangeHardware(); again.GetSequence() != first.GetSequence() ||
		!proto.Equal(one.GetDisk(), other.GetDisk()) || !slices.Equal(one.GetVolumeKey(), other.GetVolumeKey()) || other.GetVolumeServer() == nil {
		t.Errorf("told %v, and again %v", first, again)
	}
	h1.changedBy(first, "", "")
	f.awaitChange("web1", fleet.ChangeDone)
	v.start()
	v.check("at the end", "h1@1")
}
