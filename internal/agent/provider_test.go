package agent

import (
	"context"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/network"
)

// inBridge describes the test's port as one in the hosts' own bridge.
func inBridge() *godwitv1.PortNetwork {
	return &godwitv1.PortNetwork{Port: "net0", Bridge: lab.HostBridge, Mtu: testMTU}
}

// newFabricFleet makes hosts whose bridges have one physical network.
func newFabricFleet(t *testing.T, names ...string) (*testFleet, []*testHost) {
	t.Helper()
	f, hosts := newFleet(t, names...)
	if err := f.lab.AddFabric(t.Context(), lab.DefaultMTU, names...); err != nil {
		t.Fatal(err)
	}
	return f, hosts
}

// countRARP counts the RARP requests for the test's guest that come by a host's
// bridge, until the test ends.
func (h *testHost) countRARP() *atomic.Int32 {
	h.t.Helper()
	const typeRARP = 0x8035
	frames, err := h.space.OpenPacket(lab.HostBridge, typeRARP)
	if err != nil {
		h.t.Fatal(err)
	}
	guest, err := net.ParseMAC(testMAC)
	if err != nil {
		h.t.Fatal(err)
	}
	count, done := new(atomic.Int32), make(chan struct{})
	go func() {
		defer close(done)
		frame := make([]byte, 2048)
		for {
			n, err := frames.Read(frame)
			if err != nil { // closed
				return
			}
			if n >= 60 && slices.Equal(frame[6:12], guest) {
				count.Add(1)
			}
		}
	}()
	h.t.Cleanup(func() {
		_ = frames.Close()
		<-done
	})
	return count
}

// A VM in a provider network is announced by its source before it leaves, and by its
// target from its start to the end of the forwarding, also by an agent that has taken
// it over; the source forwards until nothing comes any more.
func TestProviderHandOver(t *testing.T) {
	f, hosts := newFabricFleet(t, "h1", "h2")
	m := f.newMove(hosts, inBridge())
	atSource, atTarget := hosts[0].countRARP(), hosts[1].countRARP()
	m.prepare()
	if n := atSource.Load() + atTarget.Load(); n != 0 {
		t.Errorf("%d announcements before the copy", n)
	}
	run := m.runCommand()
	m.fleet.onCommit(func(context.Context, *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		if atSource.Load() < 2 { // at the start of the copy, and before the gate closed
			t.Errorf("the source has announced its guest %d times", atSource.Load())
		}
		if atTarget.Load() != atSource.Load() {
			t.Errorf("%d of %d announcements were heard at the target", atTarget.Load(), atSource.Load())
		}
		return &godwitv1.CommitResponse{Epoch: uint64(m.epoch + 1), Sequence: run.GetSequence()}, nil
	})
	start := m.copyCommand(0)
	m.source.sendCommand(start)
	m.target.awaitReport("running target", answers(run))
	before := atTarget.Load()
	waitFor(t, "announcements of the target", func() bool { return atTarget.Load() >= before+3 })
	m.target.stop()
	m.target.start()
	before = atTarget.Load()
	waitFor(t, "announcements of the target's next agent", func() bool { return atTarget.Load() >= before+2 })
	m.source.awaitReport("measurement", answers(start))
	began := time.Now()
	m.settle()
	if took := time.Since(began); took < quietFor {
		t.Errorf("the forwarding has ended after %v, before the network can have been quiet for %v", took, quietFor)
	}
}

// A source that runs on after the target was to have its frames is announced, so that
// the bridge of the target's host hears where the guest is before the tap goes.
func TestProviderAbort(t *testing.T) {
	f, hosts := newFabricFleet(t, "h1", "h2")
	m := f.newMove(hosts, inBridge())
	atSource := hosts[0].countRARP()
	m.prepare()
	m.fleet.onCommit(func(context.Context, *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		return nil, refusal()
	})
	m.copyUntilSwitch()
	before := atSource.Load()
	m.abort()
	if n := atSource.Load() - before; n < 2 {
		t.Errorf("the source has announced its guest %d times", n)
	}
}

// What is wrong with the host's bridge is said when the target is prepared, and leaves
// nothing there.
func TestProviderTargetRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*godwitv1.PortNetwork)
		code   fleet.Code
	}{
		"no bridge": {func(in *godwitv1.PortNetwork) { in.Bridge = "prod1" }, fleet.NotFound},
		"MTU":       {func(in *godwitv1.PortNetwork) { in.Mtu = lab.DefaultMTU + 1 }, fleet.Unsupported},
		"VLAN":      {func(in *godwitv1.PortNetwork) { in.Vlan = 100 }, fleet.Unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			f, hosts := newFabricFleet(t, "h1", "h2")
			m := f.newMove(hosts, inBridge())
			test.change(m.network)
			m.target.sendCommand(m.prepareCommand())
			answer := m.target.awaitReport("refusal", func(r *godwitv1.Report) bool { return r.GetTargetFailed() != nil }).GetTargetFailed()
			if fleet.Code(answer.GetCode()) != test.code || answer.GetHint() == "" || !answer.GetGone() {
				t.Errorf("it is refused by %v, want code %s", answer, test.code)
			}
			checkContains(t, answer.GetCause(), "bridge prod")
			m.target.checkNothingLeft()
			m.source.checkRunState(testVM, 1, "running")
			m.source.checkGates("after the refusal", network.Pass)
		})
	}
}

// A target's port in a bridge that speaks the spanning tree protocol passes nothing for
// twice its forward delay: until then the target is not ready, and nothing is copied.
func TestTargetWaitsForSpanningTree(t *testing.T) {
	const delay = 2 * time.Second // the least that there is
	f, hosts := newFabricFleet(t, "h1", "h2")
	m := f.newMove(hosts, inBridge())
	m.target.command("ip", "link", "set", lab.HostBridge, "type", "bridge", "stp_state", "1", "forward_delay", "200")
	begun := time.Now()
	m.prepare()
	if took := time.Since(begun); took < 2*delay-delay/10 {
		t.Errorf("the target was ready after %v", took)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.target.agent.find(machineKey{testVM, 2}).allPorts()[0].tap.AwaitForwarding(ended); err != nil {
		t.Errorf("the target is ready, and its bridge is not: %v", err)
	}
}
