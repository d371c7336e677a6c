package placement

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"godwit.dev/godwit/internal/fleet"
)

func drawCandidate(t *rapid.T, name string) Candidate {
	c := candidate(name)
	c.Up = rapid.Bool().Draw(t, "up")
	c.Host.Cordoned = rapid.Bool().Draw(t, "cordoned")
	c.Host.CPUs = rapid.IntRange(0, 8).Draw(t, "cpus")
	c.Host.Memory = fleet.Bytes(rapid.IntRange(0, 8).Draw(t, "memory")) * fleet.GiB
	c.Host.QEMU.Accel = rapid.SampledFrom([]string{"kvm", "tcg"}).Draw(t, "accel")
	c.Host.QEMU.Machines = rapid.SampledFrom([][]string{{"pc-q35-9.2"}, {"pc-q35-9.2", "pc-q35-10.0"}}).Draw(t, "machines")
	for n := range rapid.IntRange(0, 3).Draw(t, "claims") {
		taken(fmt.Sprintf("%s-%d", name, n), rapid.IntRange(0, 4).Draw(t, "claim"), fleet.GiB)(&c)
	}
	return c
}

func drawRequest(t *rapid.T) Request {
	vm := smallVM()
	vm.Spec.CPUs = rapid.IntRange(1, 4).Draw(t, "vm cpus")
	vm.Spec.Machine = rapid.SampledFrom([]string{"q35", "pc-q35-10.0"}).Draw(t, "machine")
	vm.Accel = rapid.SampledFrom([]string{"", "kvm", "tcg"}).Draw(t, "vm accel")
	return Request{VM: vm, Source: fleet.HostName(rapid.SampledFrom([]string{"", "h0", "h1"}).Draw(t, "source"))}
}

// Whatever the fleet looks like: every host is either ranked or refused with a
// reason, a chosen host can really take the VM, and the order in which hosts
// are listed changes nothing.
func TestChooseProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var hosts []Candidate
		for n := range rapid.IntRange(0, 6).Draw(t, "hosts") {
			hosts = append(hosts, drawCandidate(t, fmt.Sprintf("h%d", n)))
		}
		request := drawRequest(t)
		result, err := Choose(Snapshot{Hosts: hosts}, request)
		if len(result.Ranked)+len(result.Refused) != len(hosts) {
			t.Fatalf("%d ranked and %d refused of %d hosts", len(result.Ranked), len(result.Refused), len(hosts))
		}
		for _, refusal := range result.Refused {
			if len(refusal.Why) == 0 {
				t.Fatalf("%s is refused without a reason", refusal.Host)
			}
		}
		if (err == nil) != (len(result.Ranked) > 0) {
			t.Fatalf("error %v with %d hosts that fit", err, len(result.Ranked))
		}
		for _, ranked := range result.Ranked {
			checkFits(t, hosts, ranked.Host, request)
		}
		shuffled := slices.Clone(hosts)
		rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)).Shuffle(len(shuffled), func(i, j int) {
			shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
		})
		again, _ := Choose(Snapshot{Hosts: shuffled}, request)
		if !reflect.DeepEqual(result, again) {
			t.Fatalf("order of hosts matters:\n%+v\n%+v", result, again)
		}
	})
}

// checkFits states what a fit is a second time and apart from the code that
// decides it.
func checkFits(t *rapid.T, hosts []Candidate, name fleet.HostName, request Request) {
	at := slices.IndexFunc(hosts, func(c Candidate) bool { return c.Host.Name == name })
	chosen, claim := hosts[at], request.VM.Spec.Claim()
	sum := chosen.Ledger.Sum()
	machine := request.VM.Spec.Machine
	if machine == "q35" && request.VM.Accel == "" {
		machine = "pc-q35-9.2"
	}
	switch {
	case name == request.Source, !chosen.Up, chosen.Host.Cordoned:
		t.Fatalf("%s must not be chosen: %+v", name, chosen)
	case sum.CPUs+claim.CPUs > chosen.Host.CPUs, sum.Memory+claim.Memory > chosen.Host.Memory:
		t.Fatalf("%s would be oversubscribed: %+v", name, chosen)
	case request.VM.Accel != "" && request.VM.Accel != chosen.Host.QEMU.Accel:
		t.Fatalf("%s has another accelerator", name)
	case !slices.Contains(chosen.Host.QEMU.Machines, machine):
		t.Fatalf("%s has no machine %s", name, machine)
	}
}
