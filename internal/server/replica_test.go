package server

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// Two servers on one store are one fleet: the same authority, and no address
// that both give away.
func TestTwoServersShareOneStore(t *testing.T) {
	one := newFleet(t)
	two := &testFleet{t: t, dir: t.TempDir(), store: one.store}
	two.start(func(c *Config) { c.Socket = filepath.Join(one.dir, "two.sock") })
	if one.server.authority.Fingerprint() != two.server.authority.Fingerprint() {
		t.Fatal("they have different authorities")
	}
	one.network("blue", "10.20.0.0/24")
	const each = 6
	var group sync.WaitGroup
	for i, f := range []*testFleet{one, two} {
		group.Go(func() {
			for n := range each {
				_, err := f.vms.Create(t.Context(), &godwitv1.CreateVMRequest{
					Name: fmt.Sprintf("vm%d-%d", i, n), Spec: smallSpec("blue"), Stopped: true,
				})
				if err != nil {
					t.Errorf("server %d: %s", i, describe(err))
				}
			}
		})
	}
	group.Wait()
	seen := map[string]string{}
	response, err := two.vms.List(t.Context(), &godwitv1.ListVMsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range response.GetVms() {
		port := vm.GetSpec().GetPorts()[0]
		for _, address := range append(port.GetIps(), port.GetMac()) {
			if other := seen[address]; other != "" {
				t.Errorf("%s and %s both have %s", other, vm.GetName(), address)
			}
			seen[address] = vm.GetName()
		}
	}
	if len(seen) != 2*2*each {
		t.Errorf("%d addresses for %d VMs", len(seen), len(response.GetVms()))
	}
	_, err = one.vms.Create(t.Context(), &godwitv1.CreateVMRequest{Name: "vm1-0", Spec: smallSpec("blue"), Stopped: true})
	if fleet.CodeOf(err) != fleet.Exists {
		t.Errorf("a name that the other server gave: %v", err)
	}
}
