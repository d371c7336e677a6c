package e2e

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// A VM's local disk goes with it, there and back, and nothing that its guest wrote is
// lost; it starts where its disk is and nowhere else, and nothing is left when it is
// deleted.
func TestLocalDisk(t *testing.T) {
	f := newFleet(t, func(c *fleetlab.Config) { c.Hosts = []fleetlab.Host{{Name: "h1"}, {Name: "h2"}} })
	t.Cleanup(func() { // when it has been deleted
		until := time.Now().Add(migrateWithin)
		for images := localImages(t, f, "h1"); len(images) > 0; images = localImages(t, f, "h1") {
			if time.Now().After(until) {
				t.Errorf("after the deletion h1 has %v", images)
				return
			}
		}
	})
	g := boot(t, f, fleetlab.GuestConfig{Records: 50, Disks: []*godwitv1.Disk{
		{Name: "data", Kind: string(fleet.DiskLocal), Format: "raw", SizeBytes: uint64(volumeSize)},
	}})
	awaitRecords(t, g, 50)
	for _, host := range []string{"h2", "h1"} {
		c := call(t, f, g, probe.UDPConfig{Rate: 200})
		m := migrate(t, f, g, host, "succeeded")
		c.end(t)
		t.Logf("to %s: blackout %.1f ms, %v", host, m.GetOutcome().GetBlackoutMs(), m.GetProgress())
		if progress := m.GetProgress(); progress.GetDiskTotalBytes() < uint64(volumeSize)/64 || progress.GetDiskCopiedBytes() == 0 {
			t.Errorf("the disk's progress is %v", progress)
		}
		awaitRecords(t, g, 50)
		vm, err := g.Record(t.Context())
		if err != nil || vm.GetLocalHost() != host {
			t.Errorf("the disk is on %s, %v; want %s", vm.GetLocalHost(), err, host)
		}
	}
	if _, err := f.API.VM.Stop(t.Context(), &godwitv1.StopVMRequest{Name: g.Name}); err != nil {
		t.Fatal(err)
	}
	if err := g.AwaitEnd(t.Context()); err != nil {
		t.Fatal(err)
	}
	images := localImages(t, f, "h1")
	if len(images) != 1 {
		t.Fatalf("h1 has %v", images)
	}
	data, err := os.ReadFile(images[0])
	if err != nil {
		t.Fatal(err)
	}
	checkRecords(t, data)

	_, err = f.API.VM.Start(t.Context(), &godwitv1.StartVMRequest{Name: g.Name, Host: "h2"})
	if fleet.CodeOf(err) != fleet.NoFit || !strings.Contains(err.Error(), "local disks are on h1") {
		t.Errorf("started where its disk is not: %v", err)
	}
	if _, err := f.API.VM.Start(t.Context(), &godwitv1.StartVMRequest{Name: g.Name}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	if err := g.AwaitRunning(ctx); err != nil {
		t.Fatal(err)
	}
}

// localImages gives the images of local disks on a host that are not old.
func localImages(t *testing.T, f *fleetlab.Fleet, host string) []string {
	t.Helper()
	images, err := f.LocalImages(host)
	if err != nil {
		t.Fatal(err)
	}
	return images
}
