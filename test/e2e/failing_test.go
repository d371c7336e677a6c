package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
	"godwit.dev/godwit/internal/pki"
)

// badCreds makes h2's QEMU wait for migrations with the certificates in a
// folder, while that is there, instead of those that the agent gives it: the
// folder is mounted over the instance's where only this QEMU sees it.
const badCreds = `#!/bin/sh
case " $* " in *' -incoming '*) [ -d '%[1]s' ] ;; *) false ;; esac || exec qemu-system-x86_64 "$@"
for arg; do
	case $arg in socket,id=console,*) dir=${arg#*path=}; dir=${dir%%%%,*}; dir=${dir%%/*} ;; esac
done
mkdir -p "$dir/tls"
exec unshare --mount --propagation private sh -c \
	'mount --bind "$1" "$2" && shift 2 && exec qemu-system-x86_64 "$@"' sh '%[1]s' "$dir/tls" "$@"
`

// TestFailingParts has parts of the fleet fail that others rely on: a full disk
// under the server, a host whose certificate is no good.
func TestFailingParts(t *testing.T) {
	creds := filepath.Join(t.TempDir(), "creds")
	qemu := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(qemu, fmt.Appendf(nil, badCreds, creds), 0o755); err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, func(c *fleetlab.Config) {
		c.Wrap = fleetlab.OwnMounts(`mkdir -p "$4" && mount -t tmpfs -o size=400m none "$4"`)
		c.Hosts = []fleetlab.Host{{Name: "h1"}, {Name: "h2", QEMU: qemu}}
		c.Networks = 1
	})
	t.Run("full disk", func(t *testing.T) { testFullDisk(t, f) })
	t.Run("certs", func(t *testing.T) { testBadCertificate(t, f, creds) })
}

// testFullDisk fills the disk of the server's records before a migration and in
// the middle of one.
func testFullDisk(t *testing.T, f *fleetlab.Fleet) {
	g := boot(t, f, fleetlab.GuestConfig{})
	c := call(t, f, g, probe.UDPConfig{})
	before := inventories(t, f)

	empty := fillDisk(t, f)
	_, err := f.API.Migration.Create(t.Context(), &godwitv1.CreateMigrationRequest{Vm: g.Name, Target: "h2"})
	explained(t, err, fleet.Exhausted, "disk", "free some space")
	if after := inventories(t, f); after != before {
		t.Errorf("before: %s\nafter:  %s", before, after)
	}
	c.answered(t)
	empty()

	// What is under way ends all the same, either way.
	m := duringA(t, f, g, crawling, "copying", func(m *godwitv1.Migration) {
		empty = fillDisk(t, f)
		if _, err := f.API.Migration.Cancel(t.Context(), &godwitv1.CancelMigrationRequest{Id: m.GetId()}); err != nil {
			t.Error(err)
		}
	})
	demand(t, f, g, m, "aborted")
	if after := inventories(t, f); after != before {
		t.Errorf("before: %s\nafter:  %s", before, after)
	}
	empty()
	demand(t, f, g, during(t, f, g, "copying", func(*godwitv1.Migration) { empty = fillDisk(t, f) }), "succeeded")
	empty()

	migrate(t, f, g, "h1", "succeeded")
	c.end(t)
}

// fillDisk leaves so little on the disk of the server's records, until empty,
// that the server begins nothing any more.
func fillDisk(t *testing.T, f *fleetlab.Fleet) (empty func()) {
	t.Helper()
	// The disk is mounted where only the server sees it.
	dir := filepath.Join(fmt.Sprintf("/proc/%d/root", f.Server().PID()), f.ServerDir())
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		t.Fatal(err)
	}
	const leave = 88 << 20
	free := int64(disk.Bavail) * disk.Bsize
	if free <= leave || free > 400<<20 {
		t.Fatalf("%s has %d bytes free: it is not the small disk", dir, free)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := allocate(ballast, free-leave); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(ballast); err != nil {
			t.Error(err)
		}
	}
}

// allocate makes a file that takes its size on the disk.
func allocate(path string, size int64) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fallocate(int(file.Fd()), 0, 0, size), file.Close())
}

// testBadCertificate has a target that others must not trust.
func testBadCertificate(t *testing.T, f *fleetlab.Fleet, creds string) {
	for _, test := range []struct {
		name   string
		issued time.Time
		says   []string
	}{
		{"foreign", time.Now(), []string{"certificate", "known issuer"}},
		{"expired", time.Now().Add(-24 * time.Hour), []string{"h2", "certificate", "expired"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := boot(t, f, fleetlab.GuestConfig{})
			c := call(t, f, g, probe.UDPConfig{})
			before := inventories(t, f)
			forge(t, creds, test.issued)
			ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
			defer cancel()
			m, err := f.Migrate(ctx, &godwitv1.CreateMigrationRequest{Vm: g.Name, Target: "h2"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			demand(t, f, g, m, "aborted")
			for _, word := range test.says {
				if !strings.Contains(m.GetCause(), word) {
					t.Errorf("%q does not say %q", m.GetCause(), word)
				}
			}
			t.Log(m.GetCause())
			if after := inventories(t, f); after != before {
				t.Errorf("before: %s\nafter:  %s", before, after)
			}
			if err := os.RemoveAll(creds); err != nil {
				t.Fatal(err)
			}
			migrate(t, f, g, "h2", "succeeded")
			c.end(t)
		})
	}
}

// forge makes a certificate for h2, of an hour, that an authority of its own
// has signed.
func forge(t *testing.T, dir string, issued time.Time) {
	t.Helper()
	authority, err := pki.NewAuthority(issued)
	if err != nil {
		t.Fatal(err)
	}
	key, request, err := pki.NewKeyAndRequest("h2")
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := authority.Sign(request, pki.Identity{Kind: pki.Host, Name: "h2"}, pki.Names{}, time.Hour, issued)
	if err != nil {
		t.Fatal(err)
	}
	forged := pki.Credentials{Certificate: certificate, Key: key, Authority: authority.CertificatePEM()}
	if err := forged.WriteQEMUCreds(dir); err != nil {
		t.Fatal(err)
	}
}
