package cli

import (
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// Local disks come before the memory, and are shown so.
func TestDiskProgress(t *testing.T) {
	disks := &godwitv1.Progress{DiskCopiedBytes: 1 << 30, DiskTotalBytes: 4 << 30, DiskBytesPerSecond: 512 << 20, EtaMs: 6000}
	if got := stage(disks) + "  " + amounts(disks); got != "disks  disks 1GiB of 4GiB  bandwidth 512MiB/s" || fraction(disks) != 0.25 {
		t.Errorf("%q, %v", got, fraction(disks))
	}
	memory := &godwitv1.Progress{Pass: 1, TotalBytes: 4 << 30, RemainingBytes: 2 << 30, DiskCopiedBytes: 4 << 30, DiskTotalBytes: 4 << 30}
	if got := stage(memory); got != "pass 1" || fraction(memory) != 0.5 {
		t.Errorf("%q, %v", got, fraction(memory))
	}
}

func TestPlaceOfLocalDisk(t *testing.T) {
	disk := &godwitv1.Disk{Kind: "local", SizeBytes: 20 << 30}
	if got := placeOf(&godwitv1.VM{LocalHost: "h1"}, disk); got != "20GiB on h1" {
		t.Error(got)
	}
	if got := placeOf(&godwitv1.VM{}, disk); got != "20GiB on its first host" {
		t.Error(got)
	}
}
