package agent

import (
	"context"
	"encoding/json"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab"
)

// forwarding is an entry of "bridge -json fdb".
type forwarding struct {
	MAC    string   `json:"mac"`
	Device string   `json:"ifname"`
	Master string   `json:"master"`
	Remote string   `json:"dst"`
	State  string   `json:"state"`
	Flags  []string `json:"flags"`
}

// way gives where the host's overlay sends frames for an address: a device,
// and the remote host if it is the tunnel.
func (h *testHost) way(mac string) (device, remote string) {
	h.t.Helper()
	var entries []forwarding
	if err := json.Unmarshal([]byte(h.command("bridge", "-json", "fdb", "show")), &entries); err != nil {
		h.t.Fatal(err)
	}
	for _, e := range entries {
		if e.MAC != mac || e.State == "permanent" {
			continue
		}
		if e.Remote != "" {
			remote = e.Remote
		} else if e.Master != "" {
			device = e.Device
		}
	}
	return device, remote
}

func (h *testHost) checkWay(when, mac, device, remote string) {
	h.t.Helper()
	if d, r := h.way(mac); d != device || r != remote {
		h.t.Errorf("%s: %s on %s goes to %q %q, want %q %q", when, mac, h.name, d, r, device, remote)
	}
}

const (
	vxlanDevice = "gwx-100"
	otherMAC    = "52:54:00:77:00:02"
)

// apply sends a map and waits until the agent has it.
func (h *testHost) apply(version int64, networks ...*godwitv1.NetworkMap) {
	h.t.Helper()
	h.sendMap(version, networks...)
	h.awaitApplied(version)
}

func (h *testHost) sendMap(version int64, networks ...*godwitv1.NetworkMap) {
	h.t.Helper()
	h.send(&godwitv1.SessionResponse{Message: &godwitv1.SessionResponse_Addresses{
		Addresses: &godwitv1.AddressMap{Version: version, Networks: networks},
	}})
}

func (h *testHost) awaitApplied(version int64) {
	h.t.Helper()
	h.await("applied map", func() bool { return slices.Contains(h.applied, version) })
}

func blue(peer *testHost, entries ...*godwitv1.AddressEntry) *godwitv1.NetworkMap {
	return &godwitv1.NetworkMap{Name: testNetwork, Vni: testVNI, Mtu: testMTU, Entries: entries, Peers: []string{peer.space.Addr.String()}}
}

// ownedBy is the entry of the VM's port when a host owns it.
func ownedBy(h *testHost) *godwitv1.AddressEntry {
	return &godwitv1.AddressEntry{Mac: testMAC, Ips: []string{"10.20.0.5"}, Host: h.name, Address: h.space.Addr.String(), Vm: testVM, Port: "net0"}
}

func TestAddresses(t *testing.T) {
	f, hosts := newFleet(t, "h1", "h2")
	h1, h2 := hosts[0], hosts[1]
	other := &godwitv1.AddressEntry{Mac: otherMAC, Host: "h2", Address: h2.space.Addr.String(), Vm: "web2", Port: "net0"}

	// The map is there before the VM: its tap takes its place when it is made.
	h1.apply(5, blue(h2, ownedBy(h1), other))
	h1.checkWay("first map", otherMAC, vxlanDevice, h2.space.Addr.String())
	h1.checkWay("before the start", testMAC, "", "")
	h1.run(firmware(1))
	tap := h1.taps()[0].Name
	h1.checkWay("after the start", testMAC, tap, "")

	moved := blue(h2, ownedBy(h1), &godwitv1.AddressEntry{Mac: otherMAC, Host: "h3", Address: "10.77.0.99", Vm: "web2", Port: "net0"})
	h1.apply(4, moved)
	h1.checkWay("an older map", otherMAC, vxlanDevice, h2.space.Addr.String())
	h1.apply(6, moved)
	h1.checkWay("a newer map", otherMAC, vxlanDevice, "10.77.0.99")

	// An endpoint of this host is attached, and has its address.
	if _, err := f.lab.AddClient("client", lab.Port{Host: "h1", Device: "lan0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}}); err != nil {
		t.Fatal(err)
	}
	withEndpoint := blue(h2, ownedBy(h1), &godwitv1.AddressEntry{Mac: "02:00:00:00:00:07", Host: "h1", Address: h1.space.Addr.String(), Port: "lan"})
	withEndpoint.Endpoints = []*godwitv1.Endpoint{{Name: "lan", Host: "h1", Device: "lan0"}}
	h1.apply(7, withEndpoint)
	h1.checkWay("with an endpoint", "02:00:00:00:00:07", "lan0", "")
	h1.checkWay("removed", otherMAC, "", "")

	// A network in use stays; with its last tap and a later map it goes.
	h1.apply(8)
	h1.checkRunState(testVM, 1, "running")
	if _, there := h1.devices()["gwb-100"]; !there {
		t.Error("a network with a tap in it was removed")
	}
	h1.apply(9, blue(h2))
	h1.do(stopCommand(2, 1, 0))
	h1.apply(10)
	devices := h1.devices()
	for _, name := range []string{"gwb-100", vxlanDevice} {
		if devices[name] {
			t.Errorf("device %s is left", name)
		}
	}
	if !devices["lan0"] {
		t.Error("the endpoint's device went with the network")
	}
}

// A map is acknowledged when frames can't go where they went before any more,
// and not when it has come.
func TestOnlyWhatIsSetIsAcknowledged(t *testing.T) {
	f, hosts := newFleet(t, "h1", "h2")
	h1, h2 := hosts[0], hosts[1]
	other := func(host string) *godwitv1.AddressEntry {
		return &godwitv1.AddressEntry{Mac: otherMAC, Host: "h2", Address: host, Vm: "web2", Port: "net0"}
	}
	const old, now = "10.77.0.98", "10.77.0.99"

	// A stranger has the name of the network's device, until it is removed.
	h1.command("ip", "link", "add", "gwb-100", "type", "veth", "peer", "name", "stranger")
	h1.sendMap(5, blue(h2, other(old)))
	h1.sendMap(6, blue(h2, other(old)))
	h1.sendMap(7)
	h1.awaitApplied(7)
	h1.sendMap(8, blue(h2, other(old)))
	h1.command("ip", "link", "del", "gwb-100")
	h1.awaitApplied(8)
	h1.checkWay("the name is free", otherMAC, vxlanDevice, old)

	// What can be set is set, even if another entry can't.
	broken := blue(h2, other(now), &godwitv1.AddressEntry{Mac: testMAC, Host: "h9", Address: "nowhere", Vm: "web9", Port: "net0"})
	h1.sendMap(9, broken)
	h1.awaitWay(otherMAC, now)
	h1.apply(10, blue(h2, other(now)))

	// An endpoint that is not there keeps nobody waiting, and is attached when
	// it comes.
	withEndpoint := blue(h2, other(now), &godwitv1.AddressEntry{Mac: "02:00:00:00:00:07", Host: "h1", Address: h1.space.Addr.String(), Port: "lan"})
	withEndpoint.Endpoints = []*godwitv1.Endpoint{{Name: "lan", Host: "h1", Device: "lan0"}}
	h1.apply(11, withEndpoint)
	if _, err := f.lab.AddClient("client", lab.Port{Host: "h1", Device: "lan0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}}); err != nil {
		t.Fatal(err)
	}
	h1.awaitDevice("02:00:00:00:00:07", "lan0")

	h1.mu.Lock()
	defer h1.mu.Unlock()
	if want := []int64{7, 8, 10, 11}; !slices.Equal(h1.applied, want) {
		t.Errorf("acknowledged %v, want %v", h1.applied, want)
	}
}

// awaitWay waits until frames for an address go to a remote host. The kernel
// offers events of it, but not to this test's namespace.
func (h *testHost) awaitWay(mac, remote string) {
	h.t.Helper()
	h.poll(mac+" at "+remote, func() bool { _, at := h.way(mac); return at == remote })
}

func (h *testHost) awaitDevice(mac, device string) {
	h.t.Helper()
	h.poll(mac+" at "+device, func() bool { at, _ := h.way(mac); return at == device })
}

func (h *testHost) poll(what string, holds func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("%s: no %s", h.name, what)
		}
	}
}

// devices gives the names of the host's devices.
func (h *testHost) devices() map[string]bool {
	h.t.Helper()
	var links []struct {
		Name string `json:"ifname"`
	}
	if err := json.Unmarshal([]byte(h.command("ip", "-json", "link", "show")), &links); err != nil {
		h.t.Fatal(err)
	}
	names := map[string]bool{}
	for _, link := range links {
		names[link.Name] = true
	}
	return names
}

// Where frames for a VM that moves go on both hosts, whatever order maps and
// steps come in.
func TestAddressesOfAMove(t *testing.T) {
	m := newMove(t)
	at := func(owner *testHost, version int64) {
		m.source.apply(version, blue(m.target, ownedBy(owner)))
		m.target.apply(version, blue(m.source, ownedBy(owner)))
	}
	toSource, toTarget := m.source.space.Addr.String(), m.target.space.Addr.String()
	at(m.source, 1)
	old := m.source.taps()[0].Name
	m.prepare()
	young := m.target.taps()[0].Name
	m.source.checkWay("prepared", testMAC, old, "")
	m.target.checkWay("prepared", testMAC, vxlanDevice, toSource)

	// Loaded: the target takes the frames of its own overlay, and a map that
	// still has the old owner does not change that.
	decide, asked := make(chan error), make(chan struct{})
	run := m.runCommand()
	m.fleet.onCommit(func(context.Context, *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		asked <- struct{}{}
		return &godwitv1.CommitResponse{Epoch: 2, Sequence: run.GetSequence()}, <-decide
	})
	m.source.sendCommand(m.copyCommand(0))
	receive(t, "commit", asked)
	at(m.source, 2)
	m.source.checkWay("loaded", testMAC, old, "")
	m.target.checkWay("loaded", testMAC, young, "")

	// Refused: they go to the source again.
	decide <- refusal()
	m.abort()
	m.target.checkWay("aborted", testMAC, vxlanDevice, toSource)

	m.prepare()
	run = m.runCommand()
	m.source.sendCommand(m.copyCommand(0))
	receive(t, "commit", asked)
	decide <- nil
	m.target.awaitReport("running target", answers(run))
	at(m.target, 3)
	young = m.target.taps()[0].Name
	m.source.checkWay("forwarding", testMAC, old, "")
	m.target.checkWay("running", testMAC, young, "")
	m.settle()
	m.source.checkWay("settled", testMAC, vxlanDevice, toTarget)
	m.target.checkWay("settled", testMAC, young, "")
}

// An endpoint that the map does not have any more is taken out of the overlay,
// also by an agent that has not put it there.
func TestEndpointIsTakenOut(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.command("ip", "link", "add", "edge0", "type", "veth", "peer", "name", "edge1")
	network := blue(h)
	network.Endpoints = []*godwitv1.Endpoint{{Name: "gw", Device: "edge0"}}
	h.apply(1, network)
	if master := h.command("ip", "-o", "link", "show", "edge0"); !strings.Contains(master, "master gwb-") {
		t.Fatalf("not attached: %s", master)
	}
	h.stop()
	h.start()
	h.apply(2, blue(h))
	if master := h.command("ip", "-o", "link", "show", "edge0"); strings.Contains(master, "master") {
		t.Errorf("still attached: %s", master)
	}
}
