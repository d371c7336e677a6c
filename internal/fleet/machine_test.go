package fleet

import (
	"maps"
	"slices"
	"testing"
)

func machine(changes ...string) Machine {
	m := Machine{
		MachineType: "pc-q35-10.0", MachineRAM: "512MiB", MachineVCPUs: "2", MachineFlags: "avx2 sse2 x-own", MachineWords: "1.EDX=1 7.EBX=20",
		"disk root size": "1GiB", "NIC nic0 MAC": "52:54:00:00:00:01",
	}
	for i := 0; i < len(changes); i += 2 {
		if m[changes[i]] = changes[i+1]; changes[i+1] == "" {
			delete(m, changes[i])
		}
	}
	return m
}

func TestDifferences(t *testing.T) {
	cases := []struct {
		what           string
		source, target Machine
		want           []Difference
	}{
		{"the same", machine(), machine(), nil},
		{"not asked at the source", nil, machine(), nil},
		{"not asked at the target", machine(), nil, nil},
		{"memory", machine(), machine(MachineRAM, "1GiB"), []Difference{{MachineRAM, "512MiB", "1GiB"}}},
		{"two", machine("disk root size", "2GiB"), machine(MachineVCPUs, "4"), []Difference{{"disk root size", "2GiB", "1GiB"}, {MachineVCPUs, "2", "4"}}},
		{"a card is missing", machine(), machine("NIC nic0 MAC", ""), []Difference{{"NIC nic0 MAC", "52:54:00:00:00:01", Nothing}}},
		{"a card too many", machine(), machine("device nic1-card", "virtio-net-pci"), []Difference{{"device nic1-card", Nothing, "virtio-net-pci"}}},
		{"a flag", machine(), machine(MachineFlags, "sse2", MachineWords, "1.EDX=1 7.EBX=0"), []Difference{{MachineFlags, "avx2 x-own", Nothing}}},
		{"a bit without a name", machine(), machine(MachineWords, "1.EDX=1 7.EBX=21"), []Difference{{MachineWords, "7.EBX=20", "7.EBX=21"}}},
		{"a flag that the guest does not see", machine(), machine(MachineFlags, "avx2 sse2"), nil},
	}
	for _, c := range cases {
		before := maps.Clone(c.source)
		if got := c.source.Differences(c.target); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
		if !maps.Equal(before, c.source) {
			t.Errorf("%s: the source's was changed", c.what)
		}
		for _, one := range c.source.Differences(c.target) {
			if one.Remedy() == "" || one.String() == "" {
				t.Errorf("%s: %+v does not say what to do", c.what, one)
			}
		}
	}
}
