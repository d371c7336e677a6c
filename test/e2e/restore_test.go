package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// TestRestore restores backups under a VM that has moved since, as
// docs/operations.md has it: of the built-in store, and of a cluster of three.
func TestRestore(t *testing.T) {
	t.Run("built-in", func(t *testing.T) {
		var program string
		f := newFleet(t, func(c *fleetlab.Config) { c.Networks, program = 1, c.Binary })
		testRestore(t, f, program, func(t *testing.T, backup string) {
			records := filepath.Join(f.ServerDir(), "etcd")
			if err := errors.Join(f.Server().Stop(), os.Rename(records, records+".old")); err != nil {
				t.Fatal(err)
			}
			godwit(t, f, program, "server", "restore", backup, "--data", f.ServerDir())
			start(t, f.Server())
		})
	})
	t.Run("cluster", func(t *testing.T) {
		var program string
		f := newFleet(t, func(c *fleetlab.Config) {
			c.Networks, program = 1, c.Binary
			c.Etcd, c.EtcdProgram = 3, build(t, "internal/lab/etcd")
		})
		testRestore(t, f, program, func(t *testing.T, backup string) {
			if err := errors.Join(f.Server().Stop(), f.RestoreEtcd(t.Context(), backup, "restored")); err != nil {
				t.Fatal(err)
			}
			start(t, f.Server())
		})
	})
}

// testRestore takes a backup, moves a VM, and has the backup restored. The VM runs
// on where it is, nothing can be done with it until the store is accepted, and
// then it can move again; its client notices none of it.
func testRestore(t *testing.T, f *fleetlab.Fleet, program string, restore func(t *testing.T, backup string)) {
	g := boot(t, f, fleetlab.GuestConfig{})
	c := call(t, f, g, probe.UDPConfig{})
	backup := filepath.Join(t.TempDir(), "godwit.db")
	godwit(t, f, program, "server", "backup", backup)
	migrate(t, f, g, "h2", "succeeded")
	restore(t, backup)

	accept := []string{"server", "accept-restore", "--json"}
	var text string
	var err error
	for late := time.After(migrateWithin); ; { // until all agents have found the server again
		if text, err = tryGodwit(t, f, program, accept...); err == nil {
			break
		}
		if _, moved := tryGodwit(t, f, program, "migrate", g.Name, "--to", "h3"); moved == nil {
			t.Fatal("a VM was moved by what the backup says")
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-late:
			t.Fatalf("it is not accepted: %s", text)
		}
	}
	if want := "vm " + g.Name + ": it is on h2 with epoch 2, the backup had epoch 1"; !strings.Contains(text, want) {
		t.Errorf("it says %s, not %q", text, want)
	}
	if err := f.AwaitHosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	vm, err := g.Record(t.Context())
	if err != nil || vm.GetOwner().GetHost() != "h2" || vm.GetOwner().GetEpoch() != 2 || vm.GetPhase() != "running" {
		t.Errorf("the VM is %v, %v", vm, err)
	}
	migrate(t, f, g, "h1", "succeeded")
	c.end(t)
}

// godwit runs a command of the program as an operator does on the server's machine.
func godwit(t *testing.T, f *fleetlab.Fleet, program string, args ...string) {
	t.Helper()
	if text, err := tryGodwit(t, f, program, args...); err != nil {
		t.Fatalf("godwit %v: %v: %s", args, err, text)
	}
}

func tryGodwit(t *testing.T, f *fleetlab.Fleet, program string, args ...string) (text string, err error) {
	t.Helper()
	command := exec.CommandContext(t.Context(), program, args...)
	command.Env = append(os.Environ(), "GODWIT_SERVER=unix://"+f.SocketPath())
	out, err := command.CombinedOutput()
	return string(out), err
}
