package fleet

import (
	"slices"
	"testing"
)

func TestSlots(t *testing.T) {
	old := VMSpec{Machine: "pc-q35-7.2", Disks: []Disk{{Name: "a"}, {Name: "b"}}, Ports: []Port{{Name: "eth0"}}}
	spec := old.Slotted()
	if old.Disks[1].Slot != 0 {
		t.Error("the spec that was asked has changed")
	}
	if spec.Disks[0].Slot != 0x18 || spec.Disks[1].Slot != 0x19 || spec.Ports[0].Slot != 0x10 {
		t.Errorf("slots %+v", spec)
	}
	want := []Slot{0x10, 0x11, 0x12, 0x18, 0x19, 0x1a, 0x1b}
	if got := old.NewRootPorts(); !slices.Equal(got, want) {
		t.Errorf("root ports %x, want %x", got, want)
	}
	if got := spec.PluggableSlots(true); len(got) > 0 {
		t.Errorf("without root ports %x are pluggable", got)
	}
	spec.RootPorts = want
	if got := spec.PluggableSlots(true); !slices.Equal(got, []Slot{0x1a, 0x1b}) {
		t.Errorf("pluggable %x", got)
	}
	spec.Disks = spec.Disks[1:]
	if got := spec.PluggableSlots(true)[0]; got != 0x18 {
		t.Errorf("the lowest free slot is %x", got)
	}
	if got := spec.Slotted().Disks[0].Slot; got != 0x19 {
		t.Errorf("the disk that stays is in slot %x", got)
	}
	spec.Machine = "pc-i440fx-7.2"
	if spec.NewRootPorts() != nil || len(spec.PluggableSlots(false)) != MaxPorts-1 {
		t.Error("on PCI root ports matter")
	}
	full := VMSpec{Machine: "q35", Disks: make([]Disk, MaxDisks)}
	if got := full.NewRootPorts(); len(full.FreeSlots(true)) > 0 || len(got) != MaxDisks+sparePorts {
		t.Errorf("with all disks root ports %x", got)
	}
}

func TestChangesOfASpec(t *testing.T) {
	old := VMSpec{Machine: "q35", Disks: []Disk{{Name: "a"}, {Name: "b"}}, Ports: []Port{{Name: "eth0"}}}
	removal, found := old.Removal(0x18)
	if !found || removal.String() != "remove disk a" || removal.Slot() != 0x18 {
		t.Fatalf("removal %v, %t", removal, found)
	}
	if _, found := old.Removal(0x1c); found {
		t.Error("an empty slot has a card")
	}
	less := old.With(removal)
	if len(less.Disks) != 1 || less.Disks[0].Slot != 0x19 || !slices.Equal(less.RootPorts, []Slot{0x10, 0x18, 0x19}) {
		t.Errorf("without it: %+v", less)
	}
	more := less.With(Change{Disk: &Disk{Name: "c", Slot: 0x18}}).With(Change{Port: &Port{Name: "eth1", Slot: 0x11}})
	if len(more.Disks) != 2 || more.Disks[1].Slot != 0x18 || len(more.Ports) != 2 || len(less.Disks) != 1 || len(old.Disks) != 2 {
		t.Errorf("with more: %+v", more)
	}
}
