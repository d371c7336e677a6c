package server

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// backup takes a backup as the command does, and gives its path.
func (f *testFleet) backup() string {
	f.t.Helper()
	admin := f.client(f.clientConfig(f.server.admin))
	stream, err := godwitv1connect.NewServerServiceClient(admin, f.url()).Backup(f.t.Context(), &godwitv1.BackupRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	defer stream.Close()
	file, err := os.Create(filepath.Join(f.t.TempDir(), "backup"))
	if err != nil {
		f.t.Fatal(err)
	}
	for stream.Receive() {
		if _, err := file.Write(stream.Msg().GetData()); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := stream.Err(); err != nil {
		f.t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		f.t.Fatal(err)
	}
	return file.Name()
}

// restored gives a fleet whose server runs on a restored backup; how restores it.
func (f *testFleet) restored(how func(store.Config) error) *testFleet {
	f.t.Helper()
	f.stop()
	dir, err := os.MkdirTemp("", "gw") // short: the socket's path is limited
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config := store.Config{Dir: filepath.Join(dir, "store")}
	if err := how(config); err != nil {
		f.t.Fatal(err)
	}
	opened, err := store.Open(f.t.Context(), config)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := opened.Close(); err != nil {
			f.t.Error(err)
		}
	})
	after := &testFleet{t: f.t, dir: dir, store: opened}
	after.start()
	return after
}

func (f *testFleet) accept(lost ...string) ([]string, error) {
	admin := f.client(f.clientConfig(f.server.admin))
	response, err := godwitv1connect.NewServerServiceClient(admin, f.url(), connect.WithInterceptors(wire.ClientInterceptor(f.url()))).
		AcceptRestore(f.t.Context(), &godwitv1.AcceptRestoreRequest{LostHosts: lost})
	return response.GetChanges(), err
}

// has makes an agent begin with an instance and with what it knows of the store.
func has(mark *godwitv1.StoreMark, instances ...*godwitv1.InstanceReport) func(*agentOptions) {
	return func(o *agentOptions) {
		o.hello = func(h *godwitv1.Hello) { h.Store, h.Instances = mark, instances }
	}
}

// TestRestore takes a backup, lets one VM move, one stop and one start, and
// restores it, once by the command and once behind the server's back. Until the
// operator accepts that, no instance is ended and none started; then each VM is
// where it is.
func TestRestore(t *testing.T) {
	t.Parallel()
	for name, restore := range map[string]func(backup string) func(store.Config) error{
		"by the command": func(backup string) func(store.Config) error {
			return func(c store.Config) error { return Restore(t.Context(), backup, c) }
		},
		"by others": func(backup string) func(store.Config) error {
			return func(c store.Config) error { return store.Restore(backup, c) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := newFleet(t)
			h1, h2 := before.join("h1", roomy), before.join("h2", roomy)
			before.network("blue", "10.20.0.0/24")
			moved := before.running(h1, "moved", "blue")
			stopped := before.running(h1, "stopped")
			started := before.create(&godwitv1.CreateVMRequest{Name: "started", Spec: smallSpec(), Stopped: true})
			backup := before.backup()

			fl := before.depart(h1, h2, "moved", testPolicy())
			fl.to(inPrepare)
			fl.finish(inPrepare)
			before.stopVM(h1, "stopped")
			before.startVM(h2, "started")
			mark, err := before.server.mark(t.Context())
			if err != nil {
				t.Fatal(err)
			}

			f := before.restored(restore(backup))
			atH2 := has(mark,
				&godwitv1.InstanceReport{Vm: "moved", Uid: moved.GetUid(), Epoch: 2, State: lifecycle.Running},
				&godwitv1.InstanceReport{Vm: "started", Uid: started.GetUid(), Epoch: 1, State: lifecycle.Running})
			f.refused("h1", has(mark))
			f.wantStill(t, "moved")
			f.awaitStill()
			f.refused("h1", has(mark)) // as agents do: the first time may have ended a term
			if _, err := f.accept(); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "not known what runs on h2") {
				t.Errorf("accepted before h2 was heard of: %v", err)
			}
			f.refused("h2", atH2)
			changes, err := f.accept()
			if err != nil {
				t.Fatal(describe(err))
			}
			if len(changes) != 3 || !slices.ContainsFunc(changes, func(c string) bool {
				return c == "vm moved: it is on h2 with epoch 2, the backup had epoch 1"
			}) {
				t.Errorf("changes:\n%s", strings.Join(changes, "\n"))
			}
			f.checkRestored(t, mark, atH2, stopped)
			if _, err := f.accept(); fleet.CodeOf(err) != fleet.Conflict {
				t.Errorf("accepted twice: %v", err)
			}
		})
	}
}

// TestRestoreDuringMigration restores a backup while hosts still take part in a
// migration: one that is in the backup as well, or one that is younger. Once the
// store is accepted the source goes on alone, nothing is left at the target, and
// the VM can be moved there.
func TestRestoreDuringMigration(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"in the backup", "younger"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := newFleet(t)
			h1, h2 := before.join("h1", roomy), before.join("h2", roomy)
			vm := before.running(h1, "web1")
			backup := before.backup()
			fl := before.depart(h1, h2, "web1", testPolicy())
			fl.to(inCopy)
			if name == "in the backup" {
				backup = before.backup()
			}
			f := before.restored(func(c store.Config) error { return Restore(t.Context(), backup, c) })
			at := func(epoch uint64, state string) func(*agentOptions) {
				return func(o *agentOptions) {
					roomy(o)
					size := o.hello
					has(nil, &godwitv1.InstanceReport{Vm: "web1", Uid: vm.GetUid(), Epoch: epoch, State: state, Migration: fl.id})(o)
					said := o.hello
					o.hello = func(h *godwitv1.Hello) { size(h); said(h) }
				}
			}
			f.awaitStill()
			f.refused("h1", at(1, lifecycle.Paused))
			f.refused("h2", at(2, lifecycle.Incoming))
			if _, err := f.accept(); err != nil {
				t.Fatal(describe(err))
			}
			h1, h2 = f.join("h1", at(1, lifecycle.Paused)), f.join("h2", at(2, lifecycle.Incoming))
			resume := h1.command()
			if opOf(resume) != "resume_source" || resume.GetSubject() != fl.id || resume.GetEpoch() != 1 {
				t.Errorf("h1 was told %v, want that its VM goes on alone", resume)
			}
			checkForgets(t, h2.command(), "web1", 2)
			f.follow(h1, h2, "web1", fl.id).say(h1, resume, usualAnswer("resume_source")) // nobody waits for that
			f.checkPlace("web1", fleet.Owner{Host: "h1", Epoch: 1}, "", "h1")
			again := f.depart(h1, h2, "web1", testPolicy())
			again.to(inCopy)
		})
	}
}

// checkRestored: the fleet goes on, and every VM is where it is.
func (f *testFleet) checkRestored(t *testing.T, mark *godwitv1.StoreMark, atH2 func(*agentOptions), stopped *godwitv1.VM) {
	t.Helper()
	h1, h2 := f.join("h1", has(mark)), f.join("h2", atH2)
	f.checkPlace("moved", fleet.Owner{Host: "h2", Epoch: 2}, "", "h2")
	f.checkPlace("started", fleet.Owner{Host: "h2", Epoch: 1}, "", "h2")
	addresses := h2.awaitMap("the present place", func(m *godwitv1.AddressMap) bool { return entryOf(m, "moved").GetHost() == "h2" })
	if generation := addresses.GetVersion() >> generationBits; generation != 1 {
		t.Errorf("the address map is of generation %d: agents take it for an old one", generation)
	}
	for _, agent := range []*fakeAgent{h1, h2} {
		select {
		case command := <-agent.commands:
			t.Errorf("%s was told %v", agent.name, command)
		default:
		}
	}
	if vm := f.vm("stopped"); vm.GetPhase() != string(fleet.VMFailed) || vm.GetOwner().GetEpoch() <= stopped.GetOwner().GetEpoch()+1 {
		t.Errorf("vm stopped: %v", vm)
	}
	f.startVM(h1, "stopped")
}

// wantStill demands that nothing can be done with a VM.
func (f *testFleet) wantStill(t *testing.T, vm string) {
	t.Helper()
	_, stop := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: vm})
	_, start := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "started"})
	_, err := f.migrate(vm, "h2")
	for _, err := range []error{stop, start, err} {
		if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(fleet.HintOf(err), "godwit server accept-restore") {
			t.Errorf("it was done, or refused with %v (%s)", err, fleet.HintOf(err))
		}
	}
	if _, err := f.follow(nil, nil, vm, "m-none").commit("h2", 1); fleet.CodeOf(err) != fleet.Unavailable {
		t.Errorf("commit: %v", err)
	}
}

// awaitStill waits until the server leads without doing anything.
func (f *testFleet) awaitStill() {
	f.t.Helper()
	late := time.After(patience)
	for {
		own, _, changed := f.server.leader.now()
		if _, why := f.server.mirror.recovery(); why != "" && own != nil && own.ctx.Err() == nil {
			return
		}
		select {
		case <-changed:
		case <-late:
			f.t.Fatal("the term of the old store goes on")
		}
	}
}

// refused demands that a host gets no session, and is told why.
func (f *testFleet) refused(host string, edit func(*agentOptions)) {
	f.t.Helper()
	if _, err := f.tryJoin(host, edit); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "was restored from a backup") {
		f.t.Errorf("%s: %v", host, err)
	}
}

func (f *testFleet) startVM(agent *fakeAgent, name string) {
	f.t.Helper()
	if _, err := f.vms.Start(f.t.Context(), &godwitv1.StartVMRequest{Name: name, Host: agent.name}); err != nil {
		f.t.Fatal(describe(err))
	}
	agent.report(agent.command(), name, lifecycle.Running, "")
	f.awaitPhase(name, fleet.VMRunning)
}

func (f *testFleet) stopVM(agent *fakeAgent, name string) {
	f.t.Helper()
	if _, err := f.vms.Stop(f.t.Context(), &godwitv1.StopVMRequest{Name: name}); err != nil {
		f.t.Fatal(describe(err))
	}
	agent.report(agent.command(), name, lifecycle.Exited, "")
	f.awaitPhase(name, fleet.VMStopped)
}

func TestIsBehind(t *testing.T) {
	now := &godwitv1.StoreMark{Cluster: 7, Generation: 1, Revision: 100}
	for _, test := range []struct {
		known *godwitv1.StoreMark
		want  bool
	}{
		{nil, false},
		{now, false},
		{&godwitv1.StoreMark{Cluster: 7, Generation: 1, Revision: 99}, false},
		{&godwitv1.StoreMark{Cluster: 7, Generation: 1, Revision: 101}, true},
		{&godwitv1.StoreMark{Cluster: 8, Generation: 1, Revision: 1}, true},    // another store
		{&godwitv1.StoreMark{Cluster: 8, Generation: 0, Revision: 999}, false}, // accepted since
		{&godwitv1.StoreMark{Cluster: 7, Generation: 2, Revision: 1}, true},
	} {
		if got := isBehind(now, test.known); got != test.want {
			t.Errorf("behind %v: %t", test.known, got)
		}
	}
}
