package server

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/volumeserver"
)

// testVolumes is the volume server "v1" of a fleet.
type testVolumes struct {
	*testFleet
	keeper  *pki.Keeper
	control string // where it listens, since its first start
	stop    func()
	local   *client.VolumeServer
}

// serveVolumes makes the volume server, which the fleet's server knows.
func (f *testFleet) serveVolumes() *testVolumes {
	f.t.Helper()
	v := &testVolumes{testFleet: f, keeper: f.keeper(pki.Identity{Kind: pki.Volume, Name: "v1"}, 0), control: "127.0.0.1:0"}
	v.start()
	var err error
	if v.local, err = client.DialVolumeServer(client.Config{Server: "unix://" + filepath.Join(f.dir, "run", "volume.sock")}); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(v.local.Close)
	if _, err := v.local.Create(f.t.Context(), &godwitv1.CreateVolumeRequest{Name: "root", SizeBytes: uint64(fleet.MiB)}); err != nil {
		f.t.Fatal(err)
	}
	f.await("the volume server to be known", func() bool {
		known, err := f.server.tables.knownVolumeServers(f.t.Context())
		return err == nil && known["v1"]
	})
	return v
}

func (v *testVolumes) start() {
	v.t.Helper()
	s, err := volumeserver.New(v.t.Context(), volumeserver.Config{
		Dir: filepath.Join(v.dir, "v1"), Keeper: v.keeper, Listen: "127.0.0.1:0", Control: v.control, Run: filepath.Join(v.dir, "run"),
		Log: slog.New(slog.DiscardHandler), Address: netip.MustParseAddr("127.0.0.1"),
		Fleet: v.volumeServers(pki.Identity{Kind: pki.Volume, Name: "v1"}),
	})
	if err != nil {
		v.t.Fatal(err)
	}
	_, control := s.Addresses()
	v.control = control.String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stopped := false
	v.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			v.t.Error(err)
		}
	}
	v.t.Cleanup(v.stop)
}

// await polls where nothing tells of the event.
func (f *testFleet) await(what string, holds func() bool) {
	f.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			f.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// leases gives who holds the volume, and who stands by.
func (v *testVolumes) leases() (text string) {
	v.t.Helper()
	list, err := v.local.List(v.t.Context(), &godwitv1.ListVolumesRequest{})
	if err != nil || len(list.GetVolumes()) != 1 {
		v.t.Fatal(list, err)
	}
	one := list.GetVolumes()[0]
	if one.GetHolder() != "" {
		text = fmt.Sprintf("%s@%d", one.GetHolder(), one.GetEpoch())
	}
	for _, standby := range one.GetStandbys() {
		text += fmt.Sprintf(" (%s@%d)", standby.GetHost(), standby.GetEpoch())
	}
	return text
}

func (v *testVolumes) check(when, want string) {
	v.t.Helper()
	if got := v.leases(); got != want {
		v.t.Errorf("%s it is %q, want %q", when, got, want)
	}
}

// activate does it as a host.
func (v *testVolumes) activate(host string, epoch uint64, key []byte) {
	v.t.Helper()
	keeper := v.testFleet.keeper(pki.Identity{Kind: pki.Host, Name: host}, 0)
	c, err := client.DialVolumeServer(client.Config{Server: "https://" + v.control, TLS: keeper.ClientConfig(pki.Expect{Kind: pki.Volume, Name: "v1"})})
	if err != nil {
		v.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Activate(v.t.Context(), &godwitv1.ActivateLeasesRequest{Volumes: []string{"root"}, Epoch: epoch, Key: key}); err != nil {
		v.t.Error(describe(err))
	}
}

func volumeSpec(volume string) *godwitv1.VMSpec {
	spec := smallSpec()
	spec.Disks = []*godwitv1.Disk{{Name: "root", Kind: "volume", Server: "v1", Volume: volume}}
	return spec
}

// startWith starts a VM with the volume on the host of an agent, and lets it run.
func (v *testVolumes) startWith(agent *fakeAgent, name string) *godwitv1.Command {
	v.t.Helper()
	v.create(&godwitv1.CreateVMRequest{Name: name, Spec: volumeSpec("root"), Host: agent.name})
	start := agent.command()
	if servers := start.GetStartInstance().GetInstance().GetVolumeServers(); len(servers) != 1 || servers[0].GetName() != "v1" {
		v.t.Fatalf("the host is told %v", start)
	}
	v.activate(agent.name, start.GetEpoch(), start.GetStartInstance().GetVolumeKey())
	agent.report(start, name, lifecycle.Running, "")
	v.awaitPhase(name, fleet.VMRunning)
	return start
}

// The leases of a VM's volume go with its life: start, migration, stop, and the next
// VM that has the volume.
func TestLeasesFollowTheVM(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	v := f.serveVolumes()
	v.startWith(h1, "web1")
	v.check("after the start", "h1@1")
	if _, err := f.vms.Create(t.Context(), &godwitv1.CreateVMRequest{Name: "web2", Spec: volumeSpec("root")}); fleet.CodeOf(err) != fleet.Invalid {
		t.Errorf("two VMs with one volume: %v", err)
	}
	aborted := f.depart(h1, h2, "web1", testPolicy())
	aborted.next(h2, "prepare_target")
	v.check("while a target is prepared", "h1@1 (h2@2)")
	aborted.mustCancel()
	aborted.answer(h2, "release_target")
	aborted.await(migration.Aborted)
	f.await("the release of what the migration left", func() bool { return v.leases() == "h1@1" })

	fl := f.depart(h1, h2, "web1", testPolicy())
	prepare := fl.next(h2, "prepare_target")
	if servers := prepare.GetPrepareTarget().GetInstance().GetVolumeServers(); len(servers) != 1 {
		t.Errorf("the target is told %v", prepare)
	}
	fl.say(h2, prepare, usualAnswer("prepare_target"))
	fl.next(h1, "start_copy")
	fl.stopSource()
	answer, err := fl.commit("h2", 1)
	if err != nil {
		t.Fatal(err)
	}
	v.check("after the commit", "h1@1 (h2@2)")
	run := fl.next(h2, "run_target")
	grantLate(v) // of an earlier migration, by a server that led before
	f.reconciler().Redispatch()
	f.await("that the target has its lease again", func() bool { return v.leases() == "h1@1 (h2@2)" })
	v.activate("h2", 2, answer.GetVolumeKey())
	v.check("with its key", "h2@2")
	if !bytes.Equal(run.GetRunTarget().GetVolumeKey(), answer.GetVolumeKey()) {
		t.Error("the command has another key than the commit's answer")
	}
	fl.say(h2, run, usualAnswer("run_target"))
	fl.finish(inRetire)

	v.stop() // which delays nothing
	if _, err := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: "web1"}); err != nil {
		t.Fatal(err)
	}
	h2.report(h2.command(), "web1", lifecycle.Exited, "")
	f.awaitPhase("web1", fleet.VMStopped)
	v.start()
	f.await("the release of what the VM had", func() bool { return v.leases() == "" })
	if _, err := f.vms.Delete(t.Context(), &godwitv1.DeleteVMRequest{Name: "web1"}); err != nil {
		t.Fatal(err)
	}
	if start := v.startWith(h2, "web2"); start.GetEpoch() < 3 {
		t.Errorf("the next VM begins at epoch %d", start.GetEpoch())
	}
}

func grantLate(v *testVolumes) {
	v.t.Helper()
	_, err := v.local.Grant(v.t.Context(), &godwitv1.GrantLeaseRequest{Volume: "root", Epoch: 2, Host: "h9", KeyHash: strings.Repeat("0", 64)})
	if err != nil {
		v.t.Fatal(err)
	}
}

// The target was given the VM and has taken its volume, but has not run: the source
// is told to take the volume back at an epoch of its own.
func TestSourceIsGivenItsVolumeBack(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	v := f.serveVolumes()
	v.startWith(h1, "web1")
	fl := f.depart(h1, h2, "web1", testPolicy())
	fl.to(inRun)
	v.activate("h2", 2, fl.next(h2, "run_target").GetRunTarget().GetVolumeKey())
	fl.say(h2, nil, &godwitv1.Report{Event: &godwitv1.Report_TargetFailed{TargetFailed: &godwitv1.TargetFailed{Cause: "QEMU was killed", Gone: true, Unrun: true}}})
	back := fl.next(h1, "resume_source")
	v.check("when it is taken back", "h2@2 (h1@3)")
	if resume := back.GetResumeSource(); resume.GetNewEpoch() != 3 || len(resume.GetVolumeServers()) != 1 {
		t.Errorf("the source is told %v", resume)
	}
	v.activate("h1", 3, back.GetResumeSource().GetVolumeKey())
	fl.say(h1, back, usualAnswer("resume_source"))
	fl.answer(h2, "release_target")
	fl.await(migration.Aborted)
	v.check("at the end", "h1@3")
}

// A volume server that is away holds up the start of a VM, and what it refuses fails
// it; each says so.
func TestStartsThatLackTheirVolume(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	v := f.serveVolumes()
	f.create(&godwitv1.CreateVMRequest{Name: "web2", Spec: volumeSpec("nothing"), Host: "h1"})
	if vm := f.awaitPhase("web2", fleet.VMFailed); !strings.Contains(vm.GetCause(), "volume nothing of volume server v1") {
		t.Errorf("the cause is %q", vm.GetCause())
	}
	v.stop()
	f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: volumeSpec("root"), Host: "h1"})
	f.awaitVM("web1", "that says what it waits for", func(vm *godwitv1.VM) bool {
		return vm.GetPhase() == string(fleet.VMStarting) && strings.Contains(vm.GetCause(), "volume server v1")
	})
	v.start()
	start := h1.command()
	v.activate("h1", start.GetEpoch(), start.GetStartInstance().GetVolumeKey())
	h1.report(start, "web1", lifecycle.Running, "")
	if vm := f.awaitPhase("web1", fleet.VMRunning); vm.GetCause() != "" {
		t.Errorf("it runs, with the cause %q", vm.GetCause())
	}
}

// A migration whose volume server is away is aborted, and the VM stays where it is.
func TestMigrationWithoutTheVolumeServer(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	v := f.serveVolumes()
	v.startWith(h1, "web1")
	v.stop()
	fl := f.depart(h1, h2, "web1", testPolicy())
	fl.answer(h2, "release_target")
	if m := fl.await(migration.Aborted); !strings.Contains(m.GetCause(), "volume server v1") {
		t.Errorf("the cause is %q", m.GetCause())
	}
	fl.atSource(t)
}
