package server

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

func TestNetworks(t *testing.T) {
	f := newFleet(t)
	create := func(network *godwitv1.Network) (*godwitv1.Network, error) {
		response, err := f.networks.Create(t.Context(), &godwitv1.CreateNetworkRequest{Network: network})
		return response.GetNetwork(), err
	}
	cases := []struct {
		name    string
		network *godwitv1.Network
		code    fleet.Code
		want    []string
	}{
		{"chosen VNI", &godwitv1.Network{Name: "blue"}, "", nil},
		{"given VNI", &godwitv1.Network{Name: "red", Vni: 2}, "", nil},
		{"next free VNI", &godwitv1.Network{Name: "green"}, "", nil},
		{"name taken", &godwitv1.Network{Name: "blue"}, fleet.Exists, nil},
		{"VNI taken", &godwitv1.Network{Name: "pink", Vni: 2}, fleet.Exists, nil},
		{"VNI of tunnels", &godwitv1.Network{Name: "pink", Vni: 1 << 23}, fleet.Invalid, []string{"vni"}},
		{"everything wrong", &godwitv1.Network{Name: "No!", Vni: 1 << 24, Mtu: 100,
			Subnets:   []string{"10.0.0.1/24", "10.0.0.0/8", "224.0.0.0/8"},
			Endpoints: []*godwitv1.Endpoint{{Name: "x"}}}, fleet.Invalid,
			[]string{"name", "vni", "mtu", "endpoints", "subnets[0]", "subnets[1]", "subnets[2]"}},
		{"not prefixes", &godwitv1.Network{Name: "pink", Subnets: []string{"x"}}, fleet.Invalid, []string{"subnets[0]"}},
	}
	vnis := map[string]uint32{}
	for _, test := range cases {
		network, err := create(test.network)
		var paths []string
		for _, field := range fieldsOf(err) {
			paths = append(paths, field.Path)
		}
		if fleet.CodeOf(err) != test.code || !slices.Equal(paths, test.want) {
			t.Errorf("%s: %s", test.name, describe(err))
		}
		vnis[network.GetName()] = network.GetVni()
	}
	if vnis["blue"] != 1 || vnis["red"] != 2 || vnis["green"] != 3 {
		t.Errorf("VNIs %v", vnis)
	}
}

func TestEndpoints(t *testing.T) {
	f := newFleet(t)
	f.join("h1")
	f.network("blue", "10.20.0.0/24")
	vm := f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec("blue"), Stopped: true})
	attach := func(endpoint *godwitv1.Endpoint) error {
		_, err := f.networks.Attach(t.Context(), &godwitv1.AttachEndpointRequest{Network: "blue", Endpoint: endpoint})
		return err
	}
	if err := attach(&godwitv1.Endpoint{Name: "gw", Host: "h1", Device: "eth1", Ips: []string{"10.20.0.1"}}); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name     string
		endpoint *godwitv1.Endpoint
		want     []string
	}{
		{"twice", &godwitv1.Endpoint{Name: "gw", Host: "h1", Device: "eth1", Ips: []string{"10.20.0.1"}}, []string{"name", "device", "ips[0]"}},
		{"addresses of a VM", &godwitv1.Endpoint{Name: "x", Host: "h1", Device: "eth2",
			Mac: vm.GetSpec().GetPorts()[0].GetMac(), Ips: vm.GetSpec().GetPorts()[0].GetIps()}, []string{"mac", "ips[0]"}},
		{"outside", &godwitv1.Endpoint{Name: "x", Host: "h1", Device: "eth2", Ips: []string{"10.21.0.1", "10.20.0.7", "10.20.0.7"}}, []string{"ips[0]", "ips[2]"}},
		{"bad names", &godwitv1.Endpoint{Name: "X", Host: "h1", Device: "a/b", Mac: "ff:ff:ff:ff:ff:ff"}, []string{"name", "device", "mac"}},
	}
	for _, test := range cases {
		err := attach(test.endpoint)
		var paths []string
		for _, field := range fieldsOf(err) {
			paths = append(paths, field.Path)
		}
		if !slices.Equal(paths, test.want) {
			t.Errorf("%s: %s", test.name, describe(err))
		}
	}
	if err := attach(&godwitv1.Endpoint{Name: "x", Host: "h7", Device: "eth2"}); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("unknown host: %v", err)
	}
	_, err := f.networks.Delete(t.Context(), &godwitv1.DeleteNetworkRequest{Name: "blue"})
	if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "endpoint gw, port net0 of vm web1") {
		t.Errorf("delete of a used network: %v", err)
	}
	if _, err := f.networks.Detach(t.Context(), &godwitv1.DetachEndpointRequest{Network: "blue", Endpoint: "gw"}); err != nil {
		t.Fatal(err)
	}
	if err := attach(&godwitv1.Endpoint{Name: "gw2", Host: "h1", Device: "eth1", Ips: []string{"10.20.0.1"}}); err != nil {
		t.Errorf("its addresses were not freed: %s", describe(err))
	}
}

// However many VMs are created at once, no address and no capacity is given
// twice.
func TestConcurrentCreates(t *testing.T) {
	f := newFleet(t)
	f.join("h1") // has 8 CPUs
	f.network("blue", "10.20.0.0/24")
	const many = 12
	var group sync.WaitGroup
	errs := make([]error, many)
	for i := range many {
		group.Go(func() {
			_, errs[i] = f.vms.Create(t.Context(), &godwitv1.CreateVMRequest{Name: "vm" + string(rune('a'+i)), Spec: smallSpec("blue")})
		})
	}
	group.Wait()
	refused := 0
	for _, err := range errs {
		if fleet.CodeOf(err) == fleet.NoFit {
			refused++
		} else if err != nil {
			t.Error(err)
		}
	}
	if cpus, _ := f.reserved("h1"); cpus != 8 || refused != many-8 {
		t.Errorf("%d CPUs reserved, %d VMs refused", cpus, refused)
	}
	response, err := f.vms.List(t.Context(), &godwitv1.ListVMsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, vm := range response.GetVms() {
		for _, address := range append(vm.GetSpec().GetPorts()[0].GetIps(), vm.GetSpec().GetPorts()[0].GetMac()) {
			if seen[address] {
				t.Errorf("%s was given twice", address)
			}
			seen[address] = true
		}
	}
	if len(seen) != 16 {
		t.Errorf("%d addresses were given, want 16", len(seen))
	}
}

// lock puts a migration's lock on a VM.
func (f *testFleet) lock(vm string, id fleet.MigrationID) {
	f.t.Helper()
	tables := f.server.tables
	entry, err := tables.vms.Get(f.t.Context(), vm)
	if err != nil {
		f.t.Fatal(err)
	}
	entry.Value.Migration = id
	record := migration.Migration{ID: id, VM: entry.Value.Name, Source: entry.Value.Owner.Host, Target: "h9", State: migration.Copying}
	if _, err := tables.store.Commit(f.t.Context(), nil, tables.vms.Put(vm, entry.Value), tables.migrations.Put(string(id), record)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *testFleet) unlock(ctx context.Context, vm string) error {
	tables := f.server.tables
	entry, err := tables.vms.Get(ctx, vm)
	if err != nil {
		return err
	}
	entry.Value.Migration = ""
	_, err = tables.store.Commit(ctx, nil, tables.vms.Put(vm, entry.Value))
	return err
}

// The end of an instance during a migration may mean that it is at the target
// already, so it counts only once the lock is gone.
func TestEndDuringMigrationWaits(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.running(h1, "web1")
	f.lock("web1", "m-1")
	h1.report(&godwitv1.Command{Epoch: 1}, "web1", "exited", "crashed")
	// The next report of the same session is handled after it.
	f.create(&godwitv1.CreateVMRequest{Name: "web2", Spec: smallSpec()})
	h1.report(h1.command(), "web2", "running", "")
	f.awaitPhase("web2", fleet.VMRunning)
	if vm := f.vm("web1"); vm.GetPhase() != "running" {
		t.Errorf("during the migration it is %s", vm.GetPhase())
	}
	if err := f.unlock(t.Context(), "web1"); err != nil {
		t.Fatal(err)
	}
	if vm := f.awaitPhase("web1", fleet.VMFailed); vm.GetCause() != "crashed" {
		t.Errorf("cause %q", vm.GetCause())
	}
}

// call keeps the error of a call.
func call[T any](_ T, err error) error { return err }
