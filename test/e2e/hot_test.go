package e2e

import (
	"testing"

	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/witness"
)

// A running VM gets a disk and a port, uses both on the host that it is moved to, and
// is moved back without them.
func TestHotChanges(t *testing.T) {
	f := newFleet(t, func(c *fleetlab.Config) {
		c.Hosts, c.Networks = []fleetlab.Host{{Name: "h1"}, {Name: "h2"}}, 2
		c.VolumeServers = []string{"v1"}
	})
	v := f.VolumeServer("v1")
	disk, err := v.Disk(t.Context(), "data", volumeSize)
	if err != nil {
		t.Fatal(err)
	}
	g := boot(t, f, fleetlab.GuestConfig{Host: "h1"})
	if err := g.AddDisk(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	if got := leasesOf(t, v, "data"); got != "h1@1" {
		t.Errorf("with the disk it is %q", got)
	}
	port, err := g.AddPort(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.AwaitAnswer(t.Context()); err != nil {
		t.Fatal(err)
	}

	migrate(t, f, g, "h2", "succeeded")
	if err := g.AwaitAnswer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.Write(t.Context(), witness.Disk{Rate: 50}); err != nil {
		t.Fatal(err)
	}
	awaitRecords(t, g, 200)
	if got := leasesOf(t, v, "data"); got != "h2@2" {
		t.Errorf("after the migration it is %q", got)
	}
	if err := g.Write(t.Context(), witness.Disk{}); err != nil {
		t.Fatal(err)
	}
	if err := g.RemoveDisk(t.Context(), disk.GetName()); err != nil {
		t.Fatal(err)
	}
	if err := g.RemovePort(t.Context(), port); err != nil {
		t.Fatal(err)
	}
	awaitLeases(t, v, "data", "")
	checkRecords(t, readVolume(t, v, "data"))
	migrate(t, f, g, "h1", "succeeded")
	if err := g.AwaitAnswer(t.Context()); err != nil {
		t.Fatal(err)
	}
}
