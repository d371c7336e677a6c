package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
)

// A host that has another file at the path of a VM's disk does not get the VM, which
// runs on; one that has the same file does, and the guest sees the same machine there.
func TestFileDisk(t *testing.T) {
	dir := t.TempDir()
	image, other := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "other.raw")
	for _, path := range []string{image, other} {
		if err := os.WriteFile(path, make([]byte, 16*fleet.MiB), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hide := fleetlab.OwnMounts(fmt.Sprintf("mount --bind '%s' '%s'", other, image))
	f := newFleet(t, func(c *fleetlab.Config) {
		c.Hosts = []fleetlab.Host{{Name: "h1"}, {Name: "h2", Wrap: hide}, {Name: "h3"}}
	})
	g := boot(t, f, fleetlab.GuestConfig{Host: "h1", Records: 20, Disks: []*godwitv1.Disk{{Name: "root", Kind: "file", Path: image, Format: "raw"}}})
	awaitRecords(t, g, 20)

	m := migrate(t, f, g, "h2", "aborted")
	for _, part := range []string{"disk root", image + " on h2 is not the file that h1 has", "make the disk a volume"} {
		if !strings.Contains(m.GetCause(), part) {
			t.Errorf("the cause %q does not say %q", m.GetCause(), part)
		}
	}
	if m.GetProgress() != nil {
		t.Errorf("something was copied: %v", m.GetProgress())
	}

	m = migrate(t, f, g, "h3", "succeeded")
	if m.GetMachine().GetFields()[fleet.MachineType] == "" || m.GetComparison() == nil || len(m.GetComparison().GetDifferences()) > 0 {
		t.Errorf("the machine %v compared as %v", m.GetMachine(), m.GetComparison())
	}
	awaitRecords(t, g, 20)
}
