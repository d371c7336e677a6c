package server

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// testPicture has three hosts, two overlays and a provider network, without VMs.
func testPicture() picture {
	p := picture{
		vms: map[fleet.VMName]store.Entry[fleet.VM]{}, hosts: map[fleet.HostName]fleet.Host{},
		networks: map[fleet.NetworkName]fleet.Network{
			"blue": {Name: "blue", VNI: 7, MTU: 1400}, "red": {Name: "red", VNI: 8, MTU: 1500},
			"prod": {Name: "prod", Bridge: "br0", MTU: 1500},
		},
		moves: map[fleet.MigrationID]move{},
	}
	for i, name := range []fleet.HostName{"a", "b", "c"} {
		p.hosts[name] = fleet.Host{Name: name, Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}
	}
	return p
}

func (p picture) with(name, host string, phase fleet.VMPhase, networks ...fleet.NetworkName) picture {
	vm := fleet.VM{Name: fleet.VMName(name), Phase: phase, Owner: fleet.Owner{Host: fleet.HostName(host), Epoch: 1}}
	for i, network := range networks {
		vm.Spec.Ports = append(vm.Spec.Ports, fleet.Port{
			Name: fmt.Sprintf("net%d", i), Network: network, MAC: fmt.Sprintf("02:00:00:00:0%d:%s", i, hexOf(name)),
			IPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		})
	}
	p.vms[vm.Name] = store.Entry[fleet.VM]{Name: name, Value: vm}
	return p
}

func hexOf(name string) string { return fmt.Sprintf("%02x", name[len(name)-1]) }

func (p picture) withEndpoint(network fleet.NetworkName, name, host string) picture {
	changed := p.networks[network]
	changed.Endpoints = append(changed.Endpoints, fleet.Endpoint{Name: name, Host: fleet.HostName(host), Device: "eth1", MAC: "02:ee:00:00:00:01"})
	p.networks[network] = changed
	return p
}

func (p picture) withMove(vm, source, target string, over bool) picture {
	p.moves[fleet.MigrationID("m-"+vm)] = move{vm: fleet.VMName(vm), source: fleet.HostName(source), target: fleet.HostName(target), over: over}
	return p
}

// withUnheardMove has committed, and the target has not said that it runs.
func (p picture) withUnheardMove(vm, source, target string) picture {
	p.moves[fleet.MigrationID("m-"+vm)] = move{vm: fleet.VMName(vm), source: fleet.HostName(source), target: fleet.HostName(target), awaitsTarget: true}
	return p
}

// spell writes the maps on one line for each host and network.
func spell(maps map[fleet.HostName][]*godwitv1.NetworkMap) string {
	var lines []string
	for host, networks := range maps {
		for _, n := range networks {
			line := fmt.Sprintf("%s: %s", host, n.GetName())
			for _, e := range n.GetEntries() {
				line += fmt.Sprintf(" %s%s@%s", e.GetVm(), strings.TrimPrefix("/"+e.GetPort(), "/net0"), strings.TrimPrefix(e.GetAddress(), "10.0.0."))
			}
			line += " |"
			for _, peer := range n.GetPeers() {
				line += " " + strings.TrimPrefix(peer, "10.0.0.")
			}
			for _, e := range n.GetEndpoints() {
				line += " +" + e.GetDevice()
			}
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestAddressMaps(t *testing.T) {
	cases := []struct {
		name    string
		picture picture
		want    []string
	}{
		{"nothing", testPicture(), nil},
		{"one VM", testPicture().with("vm1", "a", fleet.VMRunning, "blue"), []string{"a: blue vm1@1 |"}},
		{"a stopped VM has no place", testPicture().with("vm1", "a", fleet.VMStopped, "blue"), nil},
		{"nor has one that failed", testPicture().with("vm1", "", fleet.VMFailed, "blue"), nil},
		{"one that starts has", testPicture().with("vm1", "a", fleet.VMStarting, "blue"), []string{"a: blue vm1@1 |"}},
		{"one that stops has still", testPicture().with("vm1", "a", fleet.VMStopping, "blue"), []string{"a: blue vm1@1 |"}},
		{"hosts know their networks only", testPicture().with("vm1", "a", fleet.VMRunning, "blue").
			with("vm2", "b", fleet.VMRunning, "blue").with("vm3", "c", fleet.VMRunning, "red"),
			[]string{"a: blue vm1@1 vm2@2 | 2", "b: blue vm1@1 vm2@2 | 1", "c: red vm3@3 |"}},
		{"two ports", testPicture().with("vm1", "a", fleet.VMRunning, "blue", "red").with("vm2", "b", fleet.VMRunning, "red"),
			[]string{"a: blue vm1@1 |", "a: red vm2@2 vm1/net1@1 | 2", "b: red vm2@2 vm1/net1@1 | 1"}},
		{"an endpoint", testPicture().with("vm1", "a", fleet.VMRunning, "blue").withEndpoint("blue", "gw", "c"),
			[]string{"a: blue vm1@1 /gw@3 | 3", "c: blue vm1@1 /gw@3 | 1 +eth1"}},
		{"the target knows before the VM comes", testPicture().with("vm1", "a", fleet.VMRunning, "blue").withMove("vm1", "a", "b", false),
			[]string{"a: blue vm1@1 | 2", "b: blue vm1@1 | 1"}},
		{"the source knows as long as it forwards", testPicture().with("vm1", "b", fleet.VMRunning, "blue").withMove("vm1", "a", "b", false),
			[]string{"a: blue vm1@2 | 2", "b: blue vm1@2 | 1"}},
		{"until the target is heard of, the source forwards", testPicture().with("vm1", "b", fleet.VMRunning, "blue").withUnheardMove("vm1", "a", "b"),
			[]string{"a: blue vm1@1 | 2", "b: blue vm1@1 | 1"}},
		{"and not after", testPicture().with("vm1", "b", fleet.VMRunning, "blue").withMove("vm1", "a", "b", true),
			[]string{"b: blue vm1@2 |"}},
		{"bridges learn by themselves", testPicture().with("vm1", "a", fleet.VMRunning, "prod").with("vm2", "b", fleet.VMRunning, "prod").
			withMove("vm1", "a", "c", false), nil},
		{"beside an overlay", testPicture().with("vm1", "a", fleet.VMRunning, "prod", "red").with("vm2", "b", fleet.VMRunning, "prod"),
			[]string{"a: red vm1/net1@1 |"}},
		{"a network that is gone", testPicture().with("vm1", "a", fleet.VMRunning, "green"), nil},
	}
	for _, test := range cases {
		if got, want := spell(addressMaps(test.picture)), strings.Join(test.want, "\n"); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", test.name, got, want)
		}
	}
}

// entryOf finds who has a VM's address in a map.
func entryOf(addresses *godwitv1.AddressMap, vm string) *godwitv1.AddressEntry {
	for _, network := range addresses.GetNetworks() {
		for _, entry := range network.GetEntries() {
			if entry.GetVm() == vm {
				return entry
			}
		}
	}
	return nil
}

func TestAddressesArePushed(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	first := h1.awaitMap("anything", func(*godwitv1.AddressMap) bool { return true })
	if len(first.GetNetworks()) != 0 {
		t.Errorf("a host without networks got %v", first)
	}
	f.network("blue", "10.20.0.0/24")
	f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec("blue"), Host: "h1"})
	mine := h1.awaitMap("its own VM", func(m *godwitv1.AddressMap) bool { return entryOf(m, "web1") != nil })
	if e := entryOf(mine, "web1"); e.GetHost() != "h1" || e.GetAddress() != "10.9.0.1" || !slices.Equal(e.GetIps(), []string{"10.20.0.2"}) {
		t.Errorf("entry %v", e)
	}
	if mine.GetVersion() <= first.GetVersion() {
		t.Errorf("version %d after %d", mine.GetVersion(), first.GetVersion())
	}
	if _, err := f.networks.Attach(t.Context(), &godwitv1.AttachEndpointRequest{Network: "blue", Endpoint: &godwitv1.Endpoint{
		Name: "client", Host: "h2", Device: "eth1", Ips: []string{"10.20.0.1"}}}); err != nil {
		t.Fatal(err)
	}
	theirs := h2.awaitMap("the network of its endpoint", func(m *godwitv1.AddressMap) bool { return len(m.GetNetworks()) == 1 })
	if n := theirs.GetNetworks()[0]; entryOf(theirs, "web1") == nil || !slices.Equal(n.GetPeers(), []string{"10.9.0.1"}) || len(n.GetEndpoints()) != 1 {
		t.Errorf("map %v", theirs)
	}
	// A session gets everything when it begins.
	again := f.join("h2").awaitMap("what it had", func(*godwitv1.AddressMap) bool { return true })
	if entryOf(again, "web1") == nil {
		t.Errorf("after the reconnect %v", again)
	}
}

// move changes a VM's owner as the commit of a migration does.
func (f *testFleet) move(vm string, target fleet.HostName, id fleet.MigrationID) (revision int64) {
	f.t.Helper()
	tables := f.server.tables
	entry, err := tables.vms.Get(f.t.Context(), vm)
	if err != nil {
		f.t.Fatal(err)
	}
	record := migration.Migration{
		ID: id, VM: entry.Value.Name, UID: entry.Value.UID, Source: entry.Value.Owner.Host, Target: target,
		State: migration.Settling, Committed: true, TargetRuns: true,
	}
	entry.Value.Owner = fleet.Owner{Host: target, Epoch: entry.Value.Owner.Epoch + 1}
	revision, err = tables.store.Commit(f.t.Context(), nil, tables.migrations.Put(string(id), record), tables.vms.Put(vm, entry.Value))
	if err != nil {
		f.t.Fatal(err)
	}
	return revision
}

func (f *testFleet) whenApplied(revision int64) <-chan struct{} {
	done := make(chan struct{})
	f.server.addresses.WhenApplied(revision, func([]fleet.HostName) { close(done) })
	return done
}

func TestWhenApplied(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	f.network("blue", "10.20.0.0/24")
	f.running(h1, "web1", "blue")
	slow := f.join("h3", func(o *agentOptions) { o.noAcks = true })
	slow.ack(slow.awaitMap("the first", func(*godwitv1.AddressMap) bool { return true }).GetVersion())
	if _, err := f.networks.Attach(t.Context(), &godwitv1.AttachEndpointRequest{Network: "blue", Endpoint: &godwitv1.Endpoint{
		Name: "client", Host: "h3", Device: "eth1"}}); err != nil {
		t.Fatal(err)
	}
	slow.ack(slow.awaitMap("the network", func(m *godwitv1.AddressMap) bool { return entryOf(m, "web1") != nil }).GetVersion())

	revision := f.move("web1", "h2", "m-1")
	done := f.whenApplied(revision)
	moved := slow.awaitMap("the move", func(m *godwitv1.AddressMap) bool { return entryOf(m, "web1").GetHost() == "h2" })
	h2.awaitMap("the move", func(m *godwitv1.AddressMap) bool { return entryOf(m, "web1").GetHost() == "h2" })
	select {
	case <-done:
		t.Error("called before h3 has applied it")
	default:
	}
	slow.ack(moved.GetVersion() - 1)
	slow.ack(moved.GetVersion())
	waitFor(t, done, "h3 has applied it")

	// A host that is not concerned need not be asked.
	f.running(h1, "web2")
	revision = f.move("web2", "h2", "m-2")
	waitFor(t, f.whenApplied(revision), "nobody is concerned")

	// One that leaves is waited for: its kernel sends on.
	revision = f.move("web1", "h1", "m-3")
	done = f.whenApplied(revision)
	slow.close()
	again := f.join("h3", func(o *agentOptions) { o.noAcks = true })
	back := again.awaitMap("everything", func(m *godwitv1.AddressMap) bool { return entryOf(m, "web1").GetHost() == "h1" })
	select {
	case <-done:
		t.Error("called while h3 has the old map")
	default:
	}
	again.ack(back.GetVersion())
	waitFor(t, done, "h3 is back and has applied it")
}

// TestPushIsFast keeps the way from a commit to the hosts free of anything that
// waits: forwarding lasts as long as it takes.
func TestPushIsFast(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.join("h2")
	f.network("blue", "10.20.0.0/24")
	f.running(h1, "web1", "blue")
	var took []time.Duration
	for i := range 21 {
		target := fleet.HostName([]string{"h2", "h1"}[i%2])
		revision := f.move("web1", target, fleet.MigrationID(fmt.Sprintf("m-%d", i)))
		began := time.Now()
		waitFor(t, f.whenApplied(revision), "the hosts acknowledge at once")
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("from the commit to the last acknowledgement: median %v, most %v", took[10], took[20])
	if took[10] > 50*time.Millisecond {
		t.Errorf("median %v", took[10])
	}
}

func waitFor(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("not called although %s", what)
	}
}

func TestPositionsGrow(t *testing.T) {
	order := []position{{0, 1, 0}, {0, 1, 1}, {0, 1, store.MaxOps - 1}, {0, 2, 0}, {0, 300, 0}, {1, 1, 0}, {1, 2, 0}, {2, 1, 0}}
	for i := range len(order) - 1 {
		if order[i].version() >= order[i+1].version() {
			t.Errorf("%v is not before %v", order[i], order[i+1])
		}
	}
}
