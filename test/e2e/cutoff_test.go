package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// A source that is cut off from everything but the volume server may write until the
// commit, and not after it, of which it cannot have heard.
func TestSourceCutOffFromAllButTheVolume(t *testing.T) {
	f := newFleet(t, func(c *fleetlab.Config) {
		c.Hosts, c.VolumeServers = []fleetlab.Host{{Name: "h1"}, {Name: "h2"}}, []string{"v1"}
	})
	v := f.VolumeServer("v1")
	disk, err := v.Disk(t.Context(), "web1", volumeSize)
	if err != nil {
		t.Fatal(err)
	}
	g := boot(t, f, fleetlab.GuestConfig{Records: 50, Disks: []*godwitv1.Disk{disk}})
	awaitRecords(t, g, 20)
	stale := openStale(t, f, v, "h1", "web1@1")

	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	cut, ended := cutOffAtTheCommit(ctx, t, f, g, stale)
	// Only the target can have the guest go on.
	awaitHolder(ctx, t, v, "h2@2")
	awaitRecords(t, g, 50)
	stale.write(0x22)
	stale.answer(t, false)
	select {
	case cuts := <-cut:
		for _, one := range cuts {
			if err := one.Heal(); err != nil {
				t.Error(err)
			}
		}
	case <-ctx.Done():
		t.Fatal("the source was not cut off")
	}
	demand(t, f, g, <-ended, "succeeded")
	stale.write(0x33)
	stale.answer(t, false)
	if data := readVolume(t, v, "web1"); !bytes.Equal(data[staleAt:staleAt+512], bytes.Repeat([]byte{0x11}, 512)) {
		t.Errorf("what the source has written after the commit is on the volume: % x…", data[staleAt:staleAt+8])
	}
}

// cutOffAtTheCommit moves a VM from h1 to h2, and cuts h1 off from h2 and the server
// when the target has everything and cannot have asked for the commit. The source
// writes then, and the commit follows. It gives the cuts and the migration's end.
func cutOffAtTheCommit(ctx context.Context, t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest, stale *staleWriter) (<-chan []*lab.Cut, <-chan *godwitv1.Migration) {
	cut, ended := make(chan []*lab.Cut, 1), make(chan *godwitv1.Migration, 1)
	paused, done := false, false
	each := func(m *godwitv1.Migration) {
		switch {
		case !paused && m.GetState() == "copying":
			paused = true
			if err := f.Agent("h2").Pause(); err != nil {
				t.Error(err)
			}
		case paused && !done && slices.ContainsFunc(m.GetStory(), func(e *godwitv1.StoryEntry) bool { return e.GetEvent() == fleetlab.AllSent }):
			done = true
			cut <- cutFromAll(t, f, "h1")
			stale.write(0x11)
			stale.answer(t, true)
			if err := f.Agent("h2").Continue(); err != nil {
				t.Error(err)
			}
		}
	}
	go func() {
		m, err := f.Migrate(ctx, &godwitv1.CreateMigrationRequest{
			Vm: g.Name, Target: "h2", Policy: &godwitv1.MigrationPolicy{SwitchLimitMs: (20 * time.Second).Milliseconds()},
		}, each)
		if err != nil {
			t.Errorf("%v\n%s", err, story(m))
		}
		ended <- m
	}()
	return cut, ended
}

// cutFromAll cuts a host off from the other one and the server, both ways.
func cutFromAll(t *testing.T, f *fleetlab.Fleet, host string) (cuts []*lab.Cut) {
	for _, other := range []string{"h2", "control"} {
		for _, way := range [][2]string{{host, other}, {other, host}} {
			one, err := f.Lab.Cut(way[0], way[1], lab.AllTraffic)
			if err != nil {
				t.Error(err)
				continue
			}
			cuts = append(cuts, one)
		}
	}
	return cuts
}

// awaitHolder waits until somebody holds the volume.
func awaitHolder(ctx context.Context, t *testing.T, v *fleetlab.VolumeServer, want string) {
	t.Helper()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for got := ""; got != want; got = leasesOf(t, v, "web1") {
		select {
		case <-look.C:
		case <-ctx.Done():
			t.Fatalf("the volume is %s's, not %s's", got, want)
		}
	}
}

// A target whose disk is full in the middle of the mirror is given up, and the guest
// never notices.
func TestLocalDiskTargetFull(t *testing.T) {
	const room = 100 << 20
	f := newFleet(t, func(c *fleetlab.Config) {
		small := fmt.Sprintf(`mkdir -p "${10}/disks" && mount -t tmpfs -o size=%d none "${10}/disks"`, room)
		c.Hosts = []fleetlab.Host{{Name: "h1"}, {Name: "h2", Wrap: fleetlab.OwnMounts(small)}}
		c.Networks = 1
	})
	g := boot(t, f, fleetlab.GuestConfig{Records: 50, Disks: []*godwitv1.Disk{
		{Name: "data", Kind: string(fleet.DiskLocal), Format: "raw", SizeBytes: uint64(volumeSize)},
	}})
	awaitRecords(t, g, 20)
	fillImage(t, f)
	c := call(t, f, g, probe.UDPConfig{})
	m := duringA(t, f, g, &godwitv1.MigrationPolicy{BandwidthMax: 4 << 20, OnPredictedFailure: "go-on"}, "copying", func(*godwitv1.Migration) {
		dir := filepath.Join(fmt.Sprintf("/proc/%d/root", f.Agent("h2").PID()), f.AgentDir("h2"), "disks")
		var disk unix.Statfs_t
		if err := unix.Statfs(dir, &disk); err != nil || disk.Blocks*uint64(disk.Bsize) != room {
			t.Errorf("%s is not the small disk: %v", dir, err)
			return
		}
		if err := allocate(filepath.Join(dir, "ballast"), int64(disk.Bavail)*disk.Bsize-(1<<20)); err != nil {
			t.Error(err)
		}
	})
	demand(t, f, g, m, "aborted")
	if !strings.Contains(m.GetCause(), "disk data") || !strings.Contains(m.GetCause(), "No space left") {
		t.Errorf("the cause is %s", m.GetCause())
	}
	c.answered(t)
	c.end(t)
	awaitRecords(t, g, 20)
}

// fillImage puts data into the second half of the local disk, where the guest has
// written nothing.
func fillImage(t *testing.T, f *fleetlab.Fleet) {
	t.Helper()
	images := localImages(t, f, "h1")
	if len(images) != 1 {
		t.Fatalf("h1 has %v", images)
	}
	image, err := os.OpenFile(images[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, volumeSize/2)
	_, _ = rand.Read(data) // never fails, by its contract
	_, err = image.WriteAt(data, int64(volumeSize/2))
	if err = errors.Join(err, image.Sync(), image.Close()); err != nil {
		t.Fatal(err)
	}
}
