package wire_test

import (
	"errors"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/wire"
)

func addr(t *rapid.T) netip.Addr {
	if rapid.Bool().Draw(t, "v4") {
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr")))
	}
	return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "addr")))
}

// some gives nil or a few items, never an empty slice, as protobuf does.
func some[T any](t *rapid.T, item func(*rapid.T) T) []T {
	var items []T
	for range rapid.IntRange(0, 3).Draw(t, "count") {
		items = append(items, item(t))
	}
	return items
}

func text(t *rapid.T) string { return rapid.String().Draw(t, "text") }

func count(t *rapid.T) int { return int(rapid.Int32().Draw(t, "int32")) }

func instant(t *rapid.T) time.Time {
	if rapid.Bool().Draw(t, "never") {
		return time.Time{}
	}
	return time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC()
}

func drawSpec(t *rapid.T) fleet.VMSpec {
	spec := fleet.VMSpec{
		CPUs:     count(t),
		Memory:   fleet.Bytes(rapid.Uint64().Draw(t, "memory")),
		Machine:  text(t),
		CPUModel: text(t),
		Disks:    some(t, disk),
		Ports:    some(t, port),
	}
	spec.RootPorts = some(t, func(t *rapid.T) fleet.Slot { return fleet.Slot(rapid.Uint32().Draw(t, "slot")) })
	if rapid.Bool().Draw(t, "boot") {
		spec.Boot = &fleet.Boot{Kernel: text(t), Initrd: text(t), Cmdline: text(t)}
	}
	return spec
}

func disk(t *rapid.T) fleet.Disk {
	return fleet.Disk{
		Name: text(t), Kind: fleet.DiskKind(text(t)), Path: text(t), Format: text(t),
		ReadOnly: rapid.Bool().Draw(t, "ro"), Slot: fleet.Slot(rapid.Uint32().Draw(t, "slot")),
	}
}

func port(t *rapid.T) fleet.Port {
	return fleet.Port{
		Name: text(t), Network: fleet.NetworkName(text(t)), MAC: text(t),
		IPs: some(t, addr), Queues: count(t), Slot: fleet.Slot(rapid.Uint32().Draw(t, "slot")),
	}
}

func change(t *rapid.T) *fleet.Change {
	one := &fleet.Change{
		Sequence: rapid.Uint64().Draw(t, "sequence"), Remove: rapid.Bool().Draw(t, "remove"),
		State: fleet.ChangeState(text(t)), Cause: text(t),
	}
	switch rapid.IntRange(0, 2).Draw(t, "change") {
	case 0:
		return nil
	case 1:
		card := disk(t)
		one.Disk = &card
	default:
		card := port(t)
		one.Port = &card
	}
	return one
}

// cross sends a message through the real codec.
func cross[M proto.Message](t *rapid.T, in, out M) M {
	data, err := proto.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func requireSame(t *rapid.T, want, got any, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(want, got) {
		t.Fatalf("changed on the way:\nsent %+v\ngot  %+v", want, got)
	}
}

func TestVMCrossesTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		vm := fleet.VM{
			Name: fleet.VMName(text(t)), UID: fleet.InstanceUID(text(t)), Spec: drawSpec(t),
			Owner: fleet.Owner{Host: fleet.HostName(text(t)), Epoch: fleet.Epoch(rapid.Uint64().Draw(t, "epoch"))},
			Phase: fleet.VMPhase(text(t)), Cause: text(t), Migration: fleet.MigrationID(text(t)),
			Accel: text(t), Created: instant(t),
			QEMU: fleet.InstanceQEMU{Version: text(t), Capabilities: some(t, text)}, Change: change(t),
		}
		version := rapid.Int64().Draw(t, "version")
		got, gotVersion, err := wire.DecodeVM(cross(t, wire.EncodeVM(vm, version), &godwitv1.VM{}))
		requireSame(t, vm, got, err)
		requireSame(t, version, gotVersion, nil)
	})
}

func TestHostCrossesTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		host := fleet.Host{
			Name: fleet.HostName(text(t)), CPUs: count(t), Memory: fleet.Bytes(rapid.Uint64().Draw(t, "memory")),
			Cordoned: rapid.Bool().Draw(t, "cordoned"), Version: text(t), Seen: instant(t), PeerPort: rapid.Uint16().Draw(t, "peer port"),
			Networks: hostNetworks(t),
			QEMU: fleet.QEMUFeatures{
				Version: text(t), Accel: text(t), Machines: some(t, text), CPUModels: some(t, text),
				Capabilities: some(t, text),
			},
		}
		for _, alias := range some(t, text) {
			if host.QEMU.Aliases == nil {
				host.QEMU.Aliases = map[string]string{}
			}
			host.QEMU.Aliases[alias] = text(t)
		}
		if rapid.Bool().Draw(t, "has address") {
			host.Address = addr(t)
		}
		status := wire.HostStatus{
			State:    text(t),
			Reserved: fleet.Claim{CPUs: count(t), Memory: fleet.Bytes(rapid.Uint64().Draw(t, "reserved"))},
			Version:  rapid.Int64().Draw(t, "version"),
		}
		got, gotStatus, err := wire.DecodeHost(cross(t, wire.EncodeHost(host, status), &godwitv1.Host{}))
		requireSame(t, host, got, err)
		requireSame(t, status, gotStatus, nil)
	})
}

func hostNetworks(t *rapid.T) fleet.HostNetworks {
	return fleet.HostNetworks{
		UnderlayMTU: count(t),
		Bridges: some(t, func(t *rapid.T) fleet.Bridge {
			return fleet.Bridge{Name: text(t), MTU: count(t), FiltersVLANs: rapid.Bool().Draw(t, "filters")}
		}),
	}
}

func TestNetworkCrossesTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		network := fleet.Network{
			Name: fleet.NetworkName(text(t)), VNI: rapid.Uint32().Draw(t, "vni"), MTU: count(t),
			Bridge: text(t), VLAN: rapid.Uint16().Draw(t, "vlan"),
			Subnets: some(t, func(t *rapid.T) netip.Prefix {
				at := addr(t)
				return netip.PrefixFrom(at, rapid.IntRange(0, at.BitLen()).Draw(t, "bits"))
			}),
			Endpoints: some(t, func(t *rapid.T) fleet.Endpoint {
				return fleet.Endpoint{
					Name: text(t), Host: fleet.HostName(text(t)), Device: text(t), MAC: text(t), IPs: some(t, addr),
				}
			}),
		}
		version := rapid.Int64().Draw(t, "version")
		got, gotVersion, err := wire.DecodeNetwork(cross(t, wire.EncodeNetwork(network, version), &godwitv1.Network{}))
		requireSame(t, network, got, err)
		requireSame(t, version, gotVersion, nil)
		for _, endpoint := range network.Endpoints {
			got, err := wire.DecodeEndpoint(cross(t, wire.EncodeEndpoint(endpoint), &godwitv1.Endpoint{}))
			requireSame(t, endpoint, got, err)
		}
	})
}

func TestDecodeReportsEveryFaultByItsPath(t *testing.T) {
	spec := &godwitv1.VMSpec{Ports: []*godwitv1.Port{
		{Ips: []string{"10.0.0.1", "ten"}},
		{Ips: []string{"10.0.0.2/24"}},
	}}
	endpoint := &godwitv1.Endpoint{Ips: []string{""}}
	tests := []struct {
		name   string
		decode func() error
		want   []string
	}{
		{"spec", func() error { _, err := wire.DecodeSpec(spec); return err }, []string{"ports[0].ips[1]", "ports[1].ips[0]"}},
		{"no spec", func() error { _, err := wire.DecodeSpec(nil); return err }, []string{"spec"}},
		{"vm", func() error { _, _, err := wire.DecodeVM(&godwitv1.VM{Spec: spec}); return err },
			[]string{"spec.ports[0].ips[1]", "spec.ports[1].ips[0]"}},
		{"vm without spec", func() error { _, _, err := wire.DecodeVM(&godwitv1.VM{}); return err }, []string{"spec"}},
		{"no vm", func() error { _, _, err := wire.DecodeVM(nil); return err }, []string{"vm"}},
		{"host", func() error { _, _, err := wire.DecodeHost(&godwitv1.Host{Address: "x"}); return err }, []string{"address"}},
		{"no host", func() error { _, _, err := wire.DecodeHost(nil); return err }, []string{"host"}},
		{"network", func() error {
			_, _, err := wire.DecodeNetwork(&godwitv1.Network{
				Subnets:   []string{"10.0.0.0/24", "10.0.0.0"},
				Endpoints: []*godwitv1.Endpoint{endpoint},
			})
			return err
		}, []string{"subnets[1]", "endpoints[0].ips[0]"}},
		{"no network", func() error { _, _, err := wire.DecodeNetwork(nil); return err }, []string{"network"}},
		{"endpoint", func() error { _, err := wire.DecodeEndpoint(endpoint); return err }, []string{"ips[0]"}},
		{"no endpoint", func() error { _, err := wire.DecodeEndpoint(nil); return err }, []string{"endpoint"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e, ok := errors.AsType[*fleet.Error](test.decode())
			if !ok || e.Code != fleet.Invalid {
				t.Fatalf("got %v, want an Invalid *fleet.Error", e)
			}
			var paths []string
			for _, field := range e.Fields {
				paths = append(paths, field.Path)
			}
			if !slices.Equal(paths, test.want) {
				t.Errorf("paths %q, want %q", paths, test.want)
			}
		})
	}
}

func TestNumbersTooLargeStayTooLarge(t *testing.T) {
	for _, vlan := range []uint32{4095, 1 << 16, 1<<16 + 1, math.MaxUint32} {
		if network, _, err := wire.DecodeNetwork(&godwitv1.Network{Vlan: vlan}); err != nil || network.VLAN < 4095 {
			t.Errorf("VLAN %d is read as %d, %v", vlan, network.VLAN, err)
		}
	}
	spec := wire.EncodeSpec(fleet.VMSpec{CPUs: math.MaxInt32 + 2, Ports: []fleet.Port{{Queues: math.MinInt32 - 2}}})
	if spec.GetCpus() != math.MaxInt32 || spec.GetPorts()[0].GetQueues() != math.MinInt32 {
		t.Errorf("cpus %d, queues %d", spec.GetCpus(), spec.GetPorts()[0].GetQueues())
	}
}
