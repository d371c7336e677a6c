package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/probe"
)

// migrateWithin bounds one migration on a busy machine.
const migrateWithin = 60 * time.Second

// newFleet starts a fleet of the program built from the present source.
func newFleet(t *testing.T, change func(*fleetlab.Config)) *fleetlab.Fleet {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a lab needs root: it makes network namespaces and taps")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("there is no qemu-system-x86_64; 'make setup' installs it")
	}
	img, err := image.Locate()
	if err != nil {
		t.Skipf("%v; 'make setup' builds it", err)
	}
	config := fleetlab.Config{Binary: build(t, "cmd/godwit"), Image: img, Networks: 2}
	if change != nil {
		change(&config)
	}
	f, err := fleetlab.Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, f)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// build makes a program of this module and gives its path.
func build(t *testing.T, pkg string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), filepath.Base(pkg))
	command := exec.CommandContext(t.Context(), "go", "build", "-o", program, "godwit.dev/godwit/"+pkg)
	if text, err := command.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
	return program
}

// showLogs prints what the programs said.
func showLogs(t *testing.T, f *fleetlab.Fleet) {
	processes := slices.Concat(f.Servers(), f.Etcds())
	for _, host := range f.Hosts() {
		processes = append(processes, f.Agent(host))
	}
	for _, process := range processes {
		if text, err := process.Log(); err == nil {
			t.Logf("%s:\n%s", filepath.Base(process.LogPath()), text)
		}
	}
}

// boot starts a VM on h1 and removes it at the end of the test, after which
// nothing of it may be left on any host.
func boot(t *testing.T, f *fleetlab.Fleet, config fleetlab.GuestConfig) *fleetlab.Guest {
	t.Helper()
	before := inventories(t, f)
	config.Name = strings.ToLower(strings.NewReplacer("/", "-", "_", "-", " ", "-").Replace(t.Name()))
	config.Host = "h1"
	g, err := f.Boot(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), migrateWithin)
		defer cancel()
		if err := g.Remove(ctx); err != nil {
			t.Errorf("remove vm %s: %v", g.Name, err)
			return
		}
		if after := inventories(t, f); after != before {
			t.Errorf("something is left of vm %s:\nbefore: %s\nafter:  %s", g.Name, before, after)
		}
	})
	return g
}

// inventories tells what of VMs there is on all hosts.
func inventories(t *testing.T, f *fleetlab.Fleet) string {
	t.Helper()
	var all strings.Builder
	for _, host := range f.Hosts() {
		one, err := f.Inventory(context.Background(), host)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s: %v; ", host, one)
	}
	return all.String()
}

// client is the traffic of one client with a guest.
type client struct {
	udp   []*probe.UDP // one for each port
	tcp   *probe.TCP
	guest *fleetlab.Guest
}

// call begins to talk to a guest; the test ends it by end.
func call(t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest, config probe.UDPConfig) *client {
	t.Helper()
	c := &client{guest: g}
	for _, addr := range g.Addrs {
		config.Target = netip.AddrPortFrom(addr, 0)
		config.Straggle = 10 * time.Second
		udp, err := probe.StartUDP(f.Client, config)
		if err != nil {
			t.Fatal(err)
		}
		c.udp = append(c.udp, udp)
	}
	tcp, err := probe.StartTCP(t.Context(), f.Client, probe.TCPConfig{Target: netip.AddrPortFrom(g.Addrs[0], 0)})
	if err != nil {
		t.Fatal(err)
	}
	c.tcp = tcp
	c.answered(t)
	return c
}

// answered waits until the guest has answered some more on every port.
func (c *client) answered(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	for _, udp := range c.udp {
		if err := udp.Answered(ctx, udp.Mark(), 50); err != nil {
			t.Errorf("%s does not answer any more: %v", c.guest.Name, err)
		}
	}
}

// end ends the traffic and demands that nothing was lost, doubled or broken:
// that all is answered, however late, shows that the guest still answers.
func (c *client) end(t *testing.T) {
	t.Helper()
	for i, udp := range c.udp {
		r, err := udp.Stop(t.Context())
		if err != nil {
			t.Error(err)
		}
		if r.OwnDrops+r.SendFailed != 0 {
			t.Errorf("port %d: the probe itself dropped %d and could not send %d", i, r.OwnDrops, r.SendFailed)
		}
		if r.Lost+r.Duplicated+r.Corrupted+r.Replayed+r.Reboots != 0 {
			t.Errorf("port %d: of %d packets %d lost, %d duplicated, %d corrupted, %d replayed; %d reboots",
				i, r.Sent, r.Lost, r.Duplicated, r.Corrupted, r.Replayed, r.Reboots)
		}
		t.Logf("port %d: %d packets, longest gap %s", i, r.Sent, r.LongestGap)
	}
	if r := c.tcp.Stop(t.Context()); r.Broken || r.Bytes == 0 {
		t.Errorf("TCP: %d bytes, %s", r.Bytes, r.Reason)
	}
}

// drop ends the traffic with a guest that is down.
func (c *client) drop(t *testing.T) {
	t.Helper()
	for _, udp := range c.udp {
		if _, err := udp.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	c.tcp.Stop(t.Context())
}

// migrate moves a VM and demands that it ends in the state.
func migrate(t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest, target, state string) *godwitv1.Migration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	// How long a hand-over takes is for the benchmarks: here the machine may be busy.
	policy := &godwitv1.MigrationPolicy{SwitchLimitMs: (20 * time.Second).Milliseconds()}
	m, err := f.Migrate(ctx, &godwitv1.CreateMigrationRequest{Vm: g.Name, Target: target, Policy: policy}, nil)
	if err != nil {
		t.Fatalf("%v; the migration is %s\n%s", err, m.GetState(), story(m))
	}
	demand(t, f, g, m, state)
	return m
}

// demand checks where a migration has ended, and that the VM is there and
// nowhere else.
func demand(t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest, m *godwitv1.Migration, state string) {
	t.Helper()
	if m.GetState() != state {
		t.Fatalf("migration %s is %s, want %s: %s\n%s", m.GetId(), m.GetState(), state, m.GetCause(), story(m))
	}
	home, other := m.GetTarget(), m.GetSource()
	if state == "aborted" {
		home, other = other, home
	}
	vm, err := g.Record(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if vm.GetOwner().GetHost() != home || vm.GetPhase() != "running" || vm.GetMigration() != "" {
		t.Errorf("vm %s after %s: %v, %s, locked by %q", g.Name, state, vm.GetOwner(), vm.GetPhase(), vm.GetMigration())
	}
	if there, err := f.Inventory(t.Context(), home); err != nil || len(there.QEMUs) != 1 || len(there.Taps) != len(vm.GetSpec().GetPorts()) || len(there.Folders) != 1 {
		t.Errorf("%s has the VM: %v: %v", home, there, err)
	}
	if left, err := f.Inventory(t.Context(), other); err != nil || !left.Empty() {
		t.Errorf("%s has not the VM: %v: %v", other, left, err)
	}
}

// story is what happened in a migration, a line for each event.
func story(m *godwitv1.Migration) string {
	var lines strings.Builder
	for _, entry := range m.GetStory() {
		fmt.Fprintf(&lines, "%s %s: %s → %s %s\n", entry.GetAt().AsTime().Format("05.000"),
			entry.GetWho(), entry.GetEvent(), entry.GetState(), entry.GetDetail())
	}
	return lines.String()
}
