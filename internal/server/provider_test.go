package server

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/placement"
)

// provider makes a provider network.
func (f *testFleet) provider(name, bridge string, vlan uint32) *godwitv1.Network {
	f.t.Helper()
	response, err := f.networks.Create(f.t.Context(), &godwitv1.CreateNetworkRequest{
		Network: &godwitv1.Network{Name: name, Bridge: bridge, Vlan: vlan},
	})
	if err != nil {
		f.t.Fatal(describe(err))
	}
	return response.GetNetwork()
}

// withBridges is a host that has them.
func withBridges(bridges ...*godwitv1.Bridge) func(*agentOptions) {
	return func(o *agentOptions) {
		o.hello = func(h *godwitv1.Hello) { h.Host.Networks = &godwitv1.HostNetworks{Bridges: bridges, UnderlayMtu: 1500} }
	}
}

func bridge(name string) *godwitv1.Bridge {
	return &godwitv1.Bridge{Name: name, Mtu: 1500, FiltersVlans: true}
}

func TestProviderNetworks(t *testing.T) {
	f := newFleet(t)
	cases := []struct {
		name    string
		network *godwitv1.Network
		code    fleet.Code
		want    string // the fields, or a part of the cause
	}{
		{"untagged", &godwitv1.Network{Name: "prod", Bridge: "br0"}, "", ""},
		{"a VLAN of the same bridge", &godwitv1.Network{Name: "office", Bridge: "br0", Vlan: 4094}, "", ""},
		{"of another bridge", &godwitv1.Network{Name: "prod1", Bridge: "br1", Mtu: 9000, Subnets: []string{"10.1.0.0/24"}}, "", ""},
		{"a bridge twice", &godwitv1.Network{Name: "prod2", Bridge: "br0"}, fleet.Exists, "bridge br0 is that of network prod"},
		{"a VLAN twice", &godwitv1.Network{Name: "office2", Bridge: "br0", Vlan: 4094}, fleet.Exists, "VLAN 4094 of bridge br0 is that of network office"},
		{"name taken", &godwitv1.Network{Name: "prod", Bridge: "br9"}, fleet.Exists, "of that name already"},
		{"a VNI", &godwitv1.Network{Name: "x", Bridge: "br9", Vni: 7}, fleet.Invalid, "vni"},
		{"a VLAN without a bridge", &godwitv1.Network{Name: "x", Vlan: 7}, fleet.Invalid, "vlan"},
		{"no VLAN", &godwitv1.Network{Name: "x", Bridge: "br9", Vlan: 4095}, fleet.Invalid, "vlan"},
		{"far from one", &godwitv1.Network{Name: "x", Bridge: "br9", Vlan: 1<<16 + 1}, fleet.Invalid, "vlan"},
		{"a path", &godwitv1.Network{Name: "x", Bridge: "br/0"}, fleet.Invalid, "bridge"},
		{"everything", &godwitv1.Network{Name: "X", Bridge: "a/b", Vni: 1, Vlan: 5000, Mtu: 9}, fleet.Invalid, "name vni bridge vlan mtu"},
	}
	for _, test := range cases {
		response, err := f.networks.Create(t.Context(), &godwitv1.CreateNetworkRequest{Network: test.network})
		said := ""
		for _, field := range fieldsOf(err) {
			said += " " + field.Path
		}
		if err != nil && said == "" {
			said = err.Error()
		}
		if fleet.CodeOf(err) != test.code || test.code == fleet.Invalid && said != " "+test.want || !strings.Contains(said, test.want) {
			t.Errorf("%s: %s", test.name, describe(err))
		}
		if made := response.GetNetwork(); err == nil && (made.GetVni() != 0 || made.GetBridge() != test.network.GetBridge() || made.GetVlan() != test.network.GetVlan()) {
			t.Errorf("%s: made %v", test.name, made)
		}
	}
	if vnis, _, err := f.server.tables.vnis.All(t.Context()); err != nil || len(vnis) != 0 {
		t.Errorf("VNIs %v are taken, %v", vnis, err)
	}
	if network := f.network("blue", "10.20.0.0/24"); network.GetVni() != 1 || network.GetMtu() != 1500 {
		t.Errorf("the first overlay is %v", network)
	}
}

// What a provider network had of its bridge is free when it is deleted, and nothing else
// is.
func TestDeleteProviderNetwork(t *testing.T) {
	f := newFleet(t)
	f.network("blue", "10.20.0.0/24")
	if network := f.provider("prod", "br0", 1); network.GetMtu() != 1500 || network.GetVersion() == 0 {
		t.Errorf("made %v", network)
	}
	remove := func(name string) {
		if err := call(f.networks.Delete(t.Context(), &godwitv1.DeleteNetworkRequest{Name: name})); err != nil {
			t.Fatal(describe(err))
		}
	}
	remove("prod")
	if vnis, _, err := f.server.tables.vnis.All(t.Context()); err != nil || len(vnis) != 1 {
		t.Errorf("VNIs %v, %v", vnis, err)
	}
	f.provider("office", "br0", 1)
	remove("blue")
	if err := f.server.tables.checkHolder(t.Context(), fleet.Network{Bridge: "br0", VLAN: 1}); fleet.CodeOf(err) != fleet.Exists {
		t.Errorf("after the overlay's end, VLAN 1 of br0 is free: %v", err)
	}
}

// However many are made at once, one has the bridge.
func TestConcurrentProviderNetworks(t *testing.T) {
	f := newFleet(t)
	for bridge := range 10 {
		var group sync.WaitGroup
		errs := make([]error, 8)
		begin := make(chan struct{})
		for i := range errs {
			group.Go(func() {
				<-begin
				_, errs[i] = f.networks.Create(t.Context(), &godwitv1.CreateNetworkRequest{
					Network: &godwitv1.Network{Name: fmt.Sprintf("net%d-%d", bridge, i), Bridge: fmt.Sprintf("br%d", bridge)},
				})
			})
		}
		close(begin)
		group.Wait()
		made := 0
		for _, err := range errs {
			if err == nil {
				made++
			} else if fleet.CodeOf(err) != fleet.Exists {
				t.Error(err)
			}
		}
		if made != 1 {
			t.Fatalf("%d networks have the same bridge", made)
		}
	}
}

func TestNoEndpointsOnBridges(t *testing.T) {
	f := newFleet(t)
	f.join("h1")
	f.provider("prod", "br0", 0)
	_, err := f.networks.Attach(t.Context(), &godwitv1.AttachEndpointRequest{
		Network: "prod", Endpoint: &godwitv1.Endpoint{Name: "gw", Host: "h1", Device: "eth1"},
	})
	if fleet.CodeOf(err) != fleet.Invalid || !strings.Contains(fleet.HintOf(err), "ip link set eth1 master br0") {
		t.Errorf("%v, hint %q", err, fleet.HintOf(err))
	}
}

func (f *testFleet) networksOf(host string) *godwitv1.HostNetworks {
	f.t.Helper()
	response, err := f.hosts.Get(f.t.Context(), &godwitv1.GetHostRequest{Name: host})
	if err != nil {
		f.t.Fatal(err)
	}
	return response.GetHost().GetNetworks()
}

func networksMessage(networks *godwitv1.HostNetworks) *godwitv1.SessionRequest {
	return &godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Networks{Networks: networks}}
}

func bridgeNames(networks *godwitv1.HostNetworks) (names []string) {
	for _, bridge := range networks.GetBridges() {
		names = append(names, bridge.GetName())
	}
	return names
}

// A host's record has what it says of its networks, from its Hello on; what it says
// again changes nothing, nor what comes late from a session that another has replaced.
func TestNetworksOfAHost(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1", withBridges(bridge("br0")))
	if is := f.networksOf("h1"); !slices.Equal(bridgeNames(is), []string{"br0"}) || is.GetUnderlayMtu() != 1500 || !is.GetBridges()[0].GetFiltersVlans() {
		t.Fatalf("after Hello: %v", is)
	}
	older := f.server.hub.session("h1")
	more := &godwitv1.HostNetworks{Bridges: []*godwitv1.Bridge{bridge("br0"), bridge("br1")}, UnderlayMtu: 9000}
	h1.say(networksMessage(more))
	f.settled(h1)
	if is := f.networksOf("h1"); !slices.Equal(bridgeNames(is), []string{"br0", "br1"}) || is.GetUnderlayMtu() != 9000 {
		t.Errorf("after a change: %v", is)
	}
	before, err := f.server.tables.hosts.Get(t.Context(), "h1")
	if err != nil {
		t.Fatal(err)
	}
	if before.Value.BootID != "boot-1" || before.Value.CPUs != 8 {
		t.Errorf("the record has become %+v", before.Value)
	}
	h1.say(networksMessage(more))
	f.running(h1, "web1")
	if after, err := f.server.tables.hosts.Get(t.Context(), "h1"); err != nil || after.Version != before.Version {
		t.Errorf("saying it again has changed the record: %v, %v", after, err)
	}
	if _, err := f.hosts.Cordon(t.Context(), &godwitv1.CordonHostRequest{Name: "h1", Cordoned: true}); err != nil {
		t.Fatal(err)
	}
	if is := f.networksOf("h1"); len(is.GetBridges()) != 2 {
		t.Errorf("the cordon has left %v", is)
	}
	f.join("h1", withBridges(bridge("br7")))
	if err := f.server.noteNetworks(t.Context(), older, more); err != nil {
		t.Error(err)
	}
	if is := f.networksOf("h1"); !slices.Equal(bridgeNames(is), []string{"br7"}) {
		t.Errorf("an older session has made them %v", is)
	}
}

// What a host says of its networks and cannot be recorded is said again in its next
// session.
func TestNetworksThatAreNotRecorded(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.server.noteNetworks(ctx, f.server.hub.session("h1"), &godwitv1.HostNetworks{UnderlayMtu: 9000}); err != nil {
		t.Error(err)
	}
	if err := h1.end(); fleet.CodeOf(err) != fleet.Unavailable || !strings.Contains(err.Error(), "could not be recorded") {
		t.Errorf("its session ended with %v", err)
	}
}

func TestNetworksThatCannotBe(t *testing.T) {
	t.Parallel()
	f := newFleet(t, func(c *Config) { c.Heartbeat = 500 * time.Millisecond })
	many := &godwitv1.HostNetworks{}
	for i := range fleet.MaxBridges + 1 {
		many.Bridges = append(many.Bridges, bridge(fmt.Sprintf("br%d", i)))
	}
	cases := []struct {
		networks *godwitv1.HostNetworks
		path     string
	}{
		{many, "host.networks.bridges"},
		{&godwitv1.HostNetworks{UnderlayMtu: -1}, "host.networks.underlay_mtu"},
		{&godwitv1.HostNetworks{Bridges: []*godwitv1.Bridge{bridge("br0"), bridge("br/1")}}, "host.networks.bridges[1].name"},
		{&godwitv1.HostNetworks{Bridges: []*godwitv1.Bridge{bridge("br0"), bridge("br0")}}, "host.networks.bridges[1].name"},
		{&godwitv1.HostNetworks{Bridges: []*godwitv1.Bridge{bridge(strings.Repeat("x", 10<<10))}}, "host.networks.bridges[0].name"},
		{&godwitv1.HostNetworks{Bridges: []*godwitv1.Bridge{{Name: "br0"}}}, "host.networks.bridges[0].mtu"},
	}
	for _, test := range cases {
		_, err := f.tryJoin("h1", func(o *agentOptions) { o.hello = func(h *godwitv1.Hello) { h.Host.Networks = test.networks } })
		if fields := fieldsOf(err); fleet.CodeOf(err) != fleet.Invalid || len(fields) != 1 || fields[0].Path != test.path || len(fields[0].Problem) > 2000 {
			t.Errorf("%s: %s", test.path, describe(err))
		}
		s := f.rawSession("h2")
		s.write(enveloped(f, helloOf("h2")), bytes.Repeat(enveloped(f, networksMessage(test.networks)), complaintsMax))
		if text := s.end(); !strings.Contains(text, "what it must not") || !strings.Contains(text, strings.TrimPrefix(test.path, "host.")) {
			t.Errorf("%s: the host was told %.300q", test.path, text)
		}
		if is := f.networksOf("h2"); is != nil {
			t.Errorf("%s: recorded as %v", test.path, is)
		}
	}
	f.join("h1", func(o *agentOptions) {
		o.hello = func(h *godwitv1.Hello) {
			h.Host.Networks = &godwitv1.HostNetworks{Bridges: many.Bridges[:fleet.MaxBridges]}
		}
	})
}

// A VM gets to hosts that have its network's bridge, whoever chooses them.
func TestPlacementByBridges(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.provider("prod", "br0", 100)
	f.join("h1")
	h2, h3 := f.join("h2", withBridges(bridge("br0"))), f.join("h3", withBridges(bridge("br1")))
	const lacks = "it has no bridge br0, which network prod is on"
	vm := f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec("prod")})
	if vm.GetOwner().GetHost() != "h2" {
		t.Fatalf("it starts on %v", vm.GetOwner())
	}
	start := h2.command()
	if network := start.GetStartInstance().GetInstance().GetNetworks()[0]; network.GetBridge() != "br0" || network.GetVlan() != 100 || network.GetVni() != 0 {
		t.Errorf("the host is told %v", network)
	}
	h2.report(start, "web1", "running", "")
	f.awaitPhase("web1", fleet.VMRunning)
	if entryOf(f.join("h2", withBridges(bridge("br0")), holds(vm)).awaitMap("any", func(*godwitv1.AddressMap) bool { return true }), "web1") != nil {
		t.Error("the address map has a VM on a bridge")
	}
	_, err := f.vms.Create(t.Context(), &godwitv1.CreateVMRequest{Name: "web2", Spec: smallSpec("prod", "prod"), Host: "h1"})
	if fleet.CodeOf(err) != fleet.NoFit || strings.Count(err.Error(), lacks) != 1 {
		t.Errorf("to be on h1: %s; the network is to be told of once", describe(err))
	}
	for _, target := range []string{"", "h1"} {
		if _, err := f.migrate("web1", target); fleet.CodeOf(err) != fleet.NoFit || !strings.Contains(describe(err), lacks) {
			t.Errorf("migrated to %q: %s", target, describe(err))
		}
	}
	h3.say(networksMessage(&godwitv1.HostNetworks{Bridges: []*godwitv1.Bridge{bridge("br0")}}))
	f.settled(h3)
	m, err := f.migrate("web1", "")
	if err != nil || m.GetTarget() != "h3" {
		t.Errorf("migrated to %q: %s", m.GetTarget(), describe(err))
	}
}

// holds makes a host say that it runs a VM.
func holds(vm *godwitv1.VM) func(*agentOptions) {
	return func(o *agentOptions) {
		before := o.hello
		o.hello = func(h *godwitv1.Hello) {
			before(h)
			h.Instances = []*godwitv1.InstanceReport{{Vm: vm.GetName(), Uid: vm.GetUid(), Epoch: vm.GetOwner().GetEpoch(), State: "running"}}
		}
	}
}

// A port is added to a running VM only where its host has the bridge, and the host is
// told which.
func TestHotPortOnABridge(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.provider("prod", "br0", 100)
	h1 := f.join("h1")
	f.running(h1, "web1")
	add := func() error {
		return call(f.vms.AddPort(t.Context(), &godwitv1.AddPortRequest{Name: "web1", Port: &godwitv1.Port{Name: "net9", Network: "prod"}}))
	}
	err := add()
	if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "host h1, where it runs, cannot have it: it has no bridge br0") || !strings.HasPrefix(fleet.HintOf(err), placement.BridgeHint) {
		t.Errorf("%s, hint %q", describe(err), fleet.HintOf(err))
	}
	if taken, err := f.server.tables.takenAddresses(t.Context(), "prod"); err != nil || len(taken) != 0 {
		t.Errorf("the refused port has taken %v, %v", taken, err)
	}
	h1.say(networksMessage(&godwitv1.HostNetworks{Bridges: []*godwitv1.Bridge{{Name: "br0", Mtu: 1500}}}))
	f.settled(h1)
	if err := add(); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "does not filter VLANs") {
		t.Errorf("without VLANs: %s", describe(err))
	}
	h1.say(networksMessage(&godwitv1.HostNetworks{Bridges: []*godwitv1.Bridge{bridge("br0")}}))
	f.running(h1, "web2")
	if err := add(); err != nil {
		t.Fatal(describe(err))
	}
	network := h1.command().GetChangeHardware().GetNetwork()
	if network.GetPort() != "net9" || network.GetBridge() != "br0" || network.GetVlan() != 100 || network.GetMtu() != 1500 || network.GetVni() != 0 {
		t.Errorf("the host is told %v", network)
	}
}

// The bridge is there when the change is recorded, and not only when it was planned.
func TestHotPortWhileTheBridgeGoes(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.provider("prod", "br0", 0)
	h1 := f.join("h1", withBridges(bridge("br0")))
	f.running(h1, "web1")
	entry, err := f.server.getVM(t.Context(), "read", "web1")
	if err != nil {
		t.Fatal(err)
	}
	wanted, err := f.server.planPort(t.Context(), entry.Value, &godwitv1.Port{Name: "net9", Network: "prod"})
	if err != nil {
		t.Fatal(describe(err))
	}
	tables := f.server.tables
	commit := func() error {
		return call(tables.store.Commit(t.Context(), wanted.conditions, tables.counters.Put("test", 1)))
	}
	if err := commit(); err != nil {
		t.Fatalf("while it is there: %v", err)
	}
	h1.say(networksMessage(&godwitv1.HostNetworks{UnderlayMtu: 1500}))
	f.settled(h1)
	if err := commit(); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("when it is gone: %v", err)
	}
}
