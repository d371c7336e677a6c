package placement

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

func candidate(name string, edit ...func(*Candidate)) Candidate {
	c := Candidate{Up: true, Host: fleet.Host{
		Name: fleet.HostName(name), Address: netip.MustParseAddr("10.0.0.1"),
		CPUs: 4, Memory: 8 * fleet.GiB,
		QEMU: fleet.QEMUFeatures{
			Version: "10.0.2", Accel: "tcg", Machines: []string{"pc-q35-9.2", "pc-q35-10.0"},
			Aliases: map[string]string{"q35": "pc-q35-10.0"}, CPUModels: []string{"qemu64", "Westmere"},
		},
	}, Ledger: fleet.Ledger{Host: fleet.HostName(name), Claims: map[fleet.InstanceUID]fleet.Claim{}}}
	for _, f := range edit {
		f(&c)
	}
	return c
}

func taken(uid string, cpus int, memory fleet.Bytes) func(*Candidate) {
	return func(c *Candidate) { c.Ledger.Claims[fleet.InstanceUID(uid)] = fleet.Claim{CPUs: cpus, Memory: memory} }
}

func smallVM() fleet.VM {
	return fleet.VM{Name: "web1", UID: "u-web1", Spec: fleet.VMSpec{
		CPUs: 2, Memory: 2 * fleet.GiB, Machine: "q35", CPUModel: "qemu64",
	}}
}

func TestRefusalsSayWhy(t *testing.T) {
	cases := []struct {
		name string
		host func(*Candidate)
		vm   func(*fleet.VM)
		want []string
	}{
		{"fits", nil, nil, nil},
		{"down", func(c *Candidate) { c.Up = false }, nil, []string{"it is down: its agent has no session with the server"}},
		{"cordoned", func(c *Candidate) { c.Host.Cordoned = true }, nil, []string{"it is cordoned"}},
		{"CPUs", taken("x", 3, 0), nil, []string{"1 of 4 CPUs are free, the VM needs 2"}},
		{"memory", taken("x", 0, 7*fleet.GiB), nil, []string{"1GiB of 8GiB memory are free, the VM needs 2GiB"}},
		{"over-reserved", taken("x", 9, 9*fleet.GiB), nil, []string{
			"0 of 4 CPUs are free, the VM needs 2", "0B of 8GiB memory are free, the VM needs 2GiB"}},
		{"its own claim does not count", taken("u-web1", 4, 8*fleet.GiB), nil, nil},
		{"accelerator", nil, func(vm *fleet.VM) { vm.Accel, vm.Spec.Machine = "kvm", "pc-q35-10.0" },
			[]string{"it runs VMs with tcg, the VM was started with kvm"}},
		{"machine", nil, func(vm *fleet.VM) { vm.Spec.Machine = "pc-q35-11.0" },
			[]string{"its QEMU 10.0.2 has no machine type pc-q35-11.0"}},
		{"alias after the first start", nil, func(vm *fleet.VM) { vm.Accel = "tcg" },
			[]string{"its QEMU 10.0.2 has no machine type q35"}},
		{"CPU model", nil, func(vm *fleet.VM) { vm.Spec.CPUModel = "EPYC" },
			[]string{"it cannot run CPU model EPYC with all its features"}},
		{"no address", func(c *Candidate) { c.Host.Address = netip.Addr{} },
			func(vm *fleet.VM) { vm.Spec.Ports = []fleet.Port{{Name: "net0"}} },
			[]string{"it has no address at which other hosts reach it"}},
		{"several", func(c *Candidate) { c.Up, c.Host.Cordoned = false, true }, nil,
			[]string{"it is down: its agent has no session with the server", "it is cordoned"}},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			host, vm := candidate("a"), smallVM()
			if test.host != nil {
				test.host(&host)
			}
			if test.vm != nil {
				test.vm(&vm)
			}
			result, err := Choose(Snapshot{Hosts: []Candidate{host}}, Request{VM: vm})
			if test.want == nil {
				if err != nil || result.Host != "a" || result.Why == "" {
					t.Fatalf("got %+v, %v; want host a with a reason", result, err)
				}
				return
			}
			if fleet.CodeOf(err) != fleet.NoFit {
				t.Fatalf("error %v, want no-fit", err)
			}
			if got := result.Refused[0].Why; !slices.Equal(got, test.want) {
				t.Errorf("reasons %q, want %q", got, test.want)
			}
		})
	}
}

func TestNoFitListsEveryHost(t *testing.T) {
	hosts := []Candidate{
		candidate("b", func(c *Candidate) { c.Host.Cordoned = true }),
		candidate("a", func(c *Candidate) { c.Up = false }, taken("x", 4, 0)),
	}
	_, err := Choose(Snapshot{Hosts: hosts}, Request{VM: smallVM()})
	failure, ok := errors.AsType[*fleet.Error](err)
	if !ok || failure.Code != fleet.NoFit || failure.Hint == "" {
		t.Fatalf("error %#v, want no-fit with a hint", err)
	}
	want := []fleet.FieldError{
		{Path: "a", Problem: "it is down: its agent has no session with the server"},
		{Path: "a", Problem: "0 of 4 CPUs are free, the VM needs 2"},
		{Path: "b", Problem: "it is cordoned"},
	}
	if !slices.Equal(failure.Fields, want) {
		t.Errorf("fields %+v, want %+v", failure.Fields, want)
	}
}

func TestEmptyFleet(t *testing.T) {
	_, err := Choose(Snapshot{}, Request{VM: smallVM()})
	if fleet.CodeOf(err) != fleet.NoFit || !strings.Contains(fleet.HintOf(err), "godwit host token") {
		t.Errorf("error %v, hint %q", err, fleet.HintOf(err))
	}
}

func TestWant(t *testing.T) {
	snapshot := Snapshot{Hosts: []Candidate{
		candidate("a"), candidate("b", taken("x", 1, fleet.GiB)), candidate("c", func(c *Candidate) { c.Host.Cordoned = true }),
	}}
	cases := []struct {
		want fleet.HostName
		code fleet.Code
		text string
	}{
		{"b", "", ""},
		{"a", fleet.NoFit, "host a cannot take it: it is where the VM is now"},
		{"c", fleet.NoFit, "it is cordoned"},
		{"nowhere", fleet.NotFound, `there is no host "nowhere"`},
	}
	for _, test := range cases {
		result, err := Choose(snapshot, Request{VM: smallVM(), Source: "a", Want: test.want})
		if fleet.CodeOf(err) != test.code {
			t.Errorf("want %s: error %v, want code %q", test.want, err, test.code)
			continue
		}
		if err == nil && result.Host != test.want {
			t.Errorf("want %s: got %s", test.want, result.Host)
		}
		if err != nil && !strings.Contains(err.Error(), test.text) {
			t.Errorf("want %s: error %q lacks %q", test.want, err, test.text)
		}
	}
}

func TestPreferences(t *testing.T) {
	cases := []struct {
		name  string
		hosts []Candidate
		want  []fleet.HostName
	}{
		{"more free memory first", []Candidate{
			candidate("a", taken("x", 1, 4*fleet.GiB)), candidate("b", taken("y", 1, fleet.GiB)), candidate("c")},
			[]fleet.HostName{"c", "b", "a"}},
		{"fewer VMs first", []Candidate{
			candidate("a", taken("x", 1, fleet.GiB), taken("y", 1, fleet.GiB)), candidate("b", taken("z", 1, 2*fleet.GiB))},
			[]fleet.HostName{"b", "a"}},
		{"the name last", []Candidate{candidate("b"), candidate("a")}, []fleet.HostName{"a", "b"}},
	}
	for _, test := range cases {
		result, err := Choose(Snapshot{Hosts: test.hosts}, Request{VM: smallVM()})
		if err != nil {
			t.Fatal(err)
		}
		var got []fleet.HostName
		for _, ranked := range result.Ranked {
			got = append(got, ranked.Host)
		}
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: ranked %v, want %v", test.name, got, test.want)
		}
	}
}
