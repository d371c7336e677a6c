package migration

import (
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

// The VM's record gets the QEMU of its owner's instance.
func TestOwnerQEMU(t *testing.T) {
	m := Migration{Source: "h1", Target: "h2", SourceQEMU: fleet.InstanceQEMU{Version: "7.2.0"}, TargetQEMU: fleet.InstanceQEMU{Version: "10.0.2"}}
	before := m.OwnerQEMU()
	m.Committed = true
	after := m.OwnerQEMU()
	m.TakenBack = true
	if back := m.OwnerQEMU(); before.Version != "7.2.0" || after.Version != "10.0.2" || back.Version != "7.2.0" {
		t.Errorf("before the commit %v, after it %v, taken back %v", before, after, back)
	}
}
