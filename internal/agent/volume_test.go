package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/pledge"
	"godwit.dev/godwit/internal/volume"
	"godwit.dev/godwit/internal/volumeserver"
)

// testVolumes is a volume server "v1" with a volume that holds a guest. It is
// reached at the same address by the agents, which are in this process, and in the
// hosts' namespaces by their QEMUs.
type testVolumes struct {
	t      *testing.T
	server *godwitv1.VolumeServer
	admin  *client.VolumeServer
	data   string
}

// serveVolumes makes the volume server, which ends with the test.
func (f *testFleet) serveVolumes(code []byte, hosts ...*testHost) *testVolumes {
	f.t.Helper()
	run := filepath.Join(f.dir, "run")
	s, err := volumeserver.New(f.t.Context(), volumeserver.Config{
		Dir: filepath.Join(f.dir, "v1"), Keeper: f.keeper(pki.Identity{Kind: pki.Volume, Name: "v1"}),
		Listen: "127.0.0.1:0", Control: "127.0.0.1:0", Run: run, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.Run(ctx) })
	nbd, control := s.Addresses()
	for _, host := range hosts {
		group.Go(host.pass(ctx, nbd))
	}
	v := &testVolumes{t: f.t, data: filepath.Join(f.dir, "v1", "volumes", "root", "data"), server: &godwitv1.VolumeServer{
		Name: "v1", Address: "127.0.0.1", NbdPort: uint32(nbd.(*net.TCPAddr).Port), ControlPort: uint32(control.(*net.TCPAddr).Port),
	}}
	if v.admin, err = client.DialVolumeServer(client.Config{Server: "unix://" + filepath.Join(run, "volume.sock")}); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		v.admin.Close()
		cancel()
		if err := group.Wait(); err != nil {
			f.t.Error(err)
		}
	})
	v.fill(bootDisk(f.t, f.dir, code).GetPath())
	return v
}

// pass makes a port of this process's loopback the same port of the host's.
func (h *testHost) pass(ctx context.Context, to net.Addr) func() error {
	h.t.Helper()
	var listener net.Listener
	err := h.space.Do(func() (err error) {
		listener, err = net.Listen("tcp", to.String())
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	context.AfterFunc(ctx, func() { _ = listener.Close() })
	return func() error {
		var pipes errgroup.Group
		for {
			from, err := listener.Accept()
			if err != nil { // the end of the test
				return pipes.Wait()
			}
			pipes.Go(func() error {
				there, err := net.Dial(to.Network(), to.String())
				if err != nil {
					return err
				}
				context.AfterFunc(ctx, func() { _, _ = from.Close(), there.Close() })
				pipes.Go(func() error { _, _ = io.Copy(there, from); _ = there.Close(); return nil })
				_, _ = io.Copy(from, there)
				_ = from.Close() // it may have been closed by the other side
				return nil
			})
		}
	}
}

// fill makes the volume of an image.
func (v *testVolumes) fill(image string) {
	v.t.Helper()
	data, err := os.ReadFile(image)
	if err == nil {
		_, err = v.admin.Create(v.t.Context(), &godwitv1.CreateVolumeRequest{Name: "root", SizeBytes: uint64(len(data))})
	}
	if err == nil {
		err = os.WriteFile(v.data, data, 0o600)
	}
	if err != nil {
		v.t.Fatal(err)
	}
}

func volumeKey(epoch fleet.Epoch) []byte { return fmt.Appendf(nil, "the key of epoch %8d", epoch) }

func (v *testVolumes) grant(epoch fleet.Epoch, host string) {
	v.t.Helper()
	_, err := v.admin.Grant(v.t.Context(), &godwitv1.GrantLeaseRequest{
		Volume: "root", Epoch: uint64(epoch), Host: host, KeyHash: string(volume.HashKey(volumeKey(epoch))),
	})
	if err != nil {
		v.t.Fatal(err)
	}
}

// holder gives the active lease, as HOST@EPOCH.
func (v *testVolumes) holder() string {
	v.t.Helper()
	list, err := v.admin.List(v.t.Context(), &godwitv1.ListVolumesRequest{})
	if err != nil || len(list.GetVolumes()) != 1 {
		v.t.Fatal(list, err)
	}
	return list.GetVolumes()[0].GetHolder() + "@" + strconv.FormatUint(list.GetVolumes()[0].GetEpoch(), 10)
}

func (v *testVolumes) check(want string) {
	v.t.Helper()
	if got := v.holder(); got != want {
		v.t.Errorf("the volume is held by %s, want %s", got, want)
	}
}

// booting describes an instance that boots from the volume.
func (v *testVolumes) booting(epoch fleet.Epoch) *godwitv1.Instance {
	instance := firmware(epoch)
	instance.Spec.Disks = []*godwitv1.Disk{{Name: "root", Kind: "volume", Server: "v1", Volume: "root", Format: "raw"}}
	instance.VolumeServers = []*godwitv1.VolumeServer{v.server}
	return instance
}

// newVolumeMove is newMove for a VM with a volume.
func newVolumeMove(t *testing.T) (*move, *testVolumes) {
	t.Helper()
	f, hosts := newFleet(t, "h1", "h2")
	v := f.serveVolumes(bootsector.Busy(), hosts...)
	m := f.moveOf(hosts)
	m.booting, m.instance = v.booting, v.booting(1)
	v.grant(1, "h1")
	command := startCommand(1, m.instance)
	command.GetStartInstance().VolumeKey = volumeKey(1)
	if got := m.source.do(command).GetInstance(); got.GetState() != "running" {
		t.Fatalf("start: %v", got)
	}
	m.source.awaitGuest(1)
	v.check("h1@1")
	v.grant(2, "h2")
	return m, v
}

// Only with the right to run a target takes its volume, and no agent's end in
// between loses it.
func TestTargetTakesItsVolume(t *testing.T) {
	m, v := newVolumeMove(t)
	m.prepare()
	answers := make(chan *godwitv1.CommitResponse, 1)
	m.fleet.onCommit(func(ctx context.Context, _ *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		v.check("h1@1")
		select {
		case answer := <-answers:
			return answer, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	if m.copyUntilSwitch() == nil {
		t.Fatal("the copy failed")
	}
	run := m.runCommand()
	run.GetRunTarget().VolumeKey = volumeKey(3) // which is not its own
	m.target.sendCommand(run)
	m.target.awaitReport("that the key is wrong", func(r *godwitv1.Report) bool { return r.GetTargetFailed().GetCode() == string(fleet.Denied) })
	m.target.checkRunState(testVM, 2, "paused")
	v.check("h1@1")
	answers <- &godwitv1.CommitResponse{Epoch: 2, Sequence: run.GetSequence(), VolumeKey: volumeKey(2)}
	m.target.awaitReport("that the target runs", func(r *godwitv1.Report) bool { return r.GetTargetRunning() != nil })
	m.target.checkRunState(testVM, 2, "running")
	v.check("h2@2")
}

// A target has taken the volume, and dies before its gate is open: the source has
// the VM back, and goes over to the lease of a new epoch.
func TestVolumeIsTakenBack(t *testing.T) {
	m, v := newVolumeMove(t)
	m.prepare()
	waits := make(chan struct{})
	m.fleet.onCommit(func(ctx context.Context, _ *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		close(waits)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if m.copyUntilSwitch() == nil {
		t.Fatal("the copy failed")
	}
	<-waits
	target := m.target.agent.find(machineKey{testVM, 2})
	target.setVolumeKey(volumeKey(2))
	if err := target.activate(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	v.check("h2@2")
	if err := target.held().Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone := m.target.awaitReport("the target's end", func(r *godwitv1.Report) bool { return r.GetTargetFailed() != nil })
	if !gone.GetTargetFailed().GetUnrun() {
		t.Errorf("it is not known that it never ran: %v", gone)
	}

	v.grant(3, "h1")
	resume := m.resumeCommand()
	back := resume.GetResumeSource()
	back.NewEpoch, back.VolumeKey, back.VolumeServers = 3, volumeKey(3), []*godwitv1.VolumeServer{v.server}
	begun := time.Now()
	if got := m.source.do(resume); got.GetSourceResumed() == nil {
		t.Fatalf("resume: %v", got)
	}
	t.Logf("resumed in %v", time.Since(begun))
	m.source.checkRunState(testVM, 3, "running")
	v.check("h1@3")
}

// The hosts have ended the switch, and the source runs on by the lease that it has;
// when the servers give it the VM back, it goes over to that of the new epoch.
func TestVolumeOfASourceThatRanOn(t *testing.T) {
	m, v := newVolumeMove(t)
	m.leaveUndecided()
	m.checkRanOn()
	v.check("h1@1")
	v.grant(3, "h1")
	resume := m.resumeCommand()
	back := resume.GetResumeSource()
	back.NewEpoch, back.VolumeServers = 3, []*godwitv1.VolumeServer{v.server}
	m.source.sendCommand(resume) // and the key is not the right one
	m.source.awaitReport("that it can't", func(r *godwitv1.Report) bool { return r.GetSourceFailed() != nil })
	m.source.checkRunState(testVM, 1, "running")
	back.VolumeKey = volumeKey(3)
	if got := m.source.do(resume); got.GetSourceResumed() == nil {
		t.Fatalf("resume: %v", got)
	}
	m.source.checkRunState(testVM, 3, "running")
	v.check("h1@3")
}

// A target that may have taken the volume does not give up, even if another agent
// has come, which can't know.
func TestNoGivingUpOfATakenVolume(t *testing.T) {
	m, _ := newVolumeMove(t)
	m.prepare()
	target := func() *machine { return m.target.agent.find(machineKey{testVM, 2}) }
	if target().mayHaveWritten() {
		t.Error("it has been prepared only")
	}
	m.target.stop()
	m.target.start()
	if one := target(); one == nil || !one.mayHaveWritten() {
		t.Fatal("the next agent does not know what the one before did")
	}
	if done, err := target().giveUp(t.Context(), m.id); done || err != nil {
		t.Errorf("it gave up: %v, %v", done, err)
	}
	if role := target().kept().Role; role != pledge.Arriving {
		t.Errorf("it is %s", role)
	}
}

// An agent that ends between the start of a QEMU and its guest's leaves the rest to
// the next one, which has the key.
func TestNextAgentActivates(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	v := f.serveVolumes(bootsector.Busy(), hosts...)
	h := hosts[0]
	v.grant(1, "h1")
	command := startCommand(1, v.booting(1))
	command.GetStartInstance().VolumeKey = volumeKey(1)
	if got := h.do(command).GetInstance(); got.GetState() != "running" {
		t.Fatalf("start: %v", got)
	}
	v.check("h1@1")
	if err := h.instance(testVM, 1).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.stop()
	h.start()
	h.checkRunState(testVM, 1, "running")
	v.check("h1@1")
}

// A start whose volume server is away names that and the disk, and says what to do.
func TestStartWithoutItsVolumeServer(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	away := &testVolumes{server: &godwitv1.VolumeServer{Name: "v1", Address: "127.0.0.1", NbdPort: 1, ControlPort: 1}}
	command := startCommand(1, away.booting(1))
	command.GetStartInstance().VolumeKey = volumeKey(1)
	got := hosts[0].do(command).GetInstance()
	if got.GetState() != "exited" {
		t.Fatalf("start: %v", got)
	}
	checkContains(t, got.GetCause(), "open disk root: volume server v1 does not answer: Failed to connect")
	hosts[0].checkNothingLeft()
}
