package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"godwit.dev/godwit/api/client"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/qemu"
)

// testPeerPort is where the agents of a lab listen for each other.
const testPeerPort = 7444

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// testFleet is a lab of hosts, and a server for their agents that does nothing
// but what the test says.
type testFleet struct {
	*fakeServer
	t   *testing.T
	lab *lab.Lab
	dir string
}

// testHost is one host: a network namespace, and an agent in this process that
// acts in it.
type testHost struct {
	*peer  // the server's end
	t      *testing.T
	fleet  *testFleet
	space  *lab.Host
	dir    string
	qemu   string // a program that runs QEMU in the namespace
	agent  *Agent
	keeps  Descriptors            // nil if nobody keeps taps open for the next agent
	stop   func()                 // ends the agent; everything else of the host stays
	onDial atomic.Pointer[func()] // called before its agent dials another; may be nil
}

// newFleet makes hosts with an agent each.
func newFleet(t *testing.T, names ...string) (*testFleet, []*testHost) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no qemu-system-x86_64")
	}
	l, err := lab.New(t.Context(), lab.Config{Hosts: names})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	// Not t.TempDir: it holds the test's name, and socket paths are short.
	dir, err := os.MkdirTemp("", "gw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &testFleet{fakeServer: newFakeServer(t), t: t, lab: l, dir: dir}
	var hosts []*testHost
	for _, name := range names {
		hosts = append(hosts, f.addHost(name))
	}
	return f, hosts
}

func (f *testFleet) addHost(name string) *testHost {
	f.t.Helper()
	h := &testHost{
		peer: f.peer(name), t: f.t, fleet: f, space: f.lab.Host(name),
		dir: filepath.Join(f.dir, name), qemu: filepath.Join(f.dir, name+"-qemu"),
	}
	enter := fmt.Sprintf("#!/bin/sh\nexec nsenter --net=/run/netns/%s qemu-system-x86_64 \"$@\"\n", h.space.Name())
	if err := os.WriteFile(h.qemu, []byte(enter), 0o700); err != nil {
		f.t.Fatal(err)
	}
	h.start()
	return h
}

// start starts an agent on the host, for the first time or again, and waits
// until it has its session.
func (h *testHost) start() {
	h.t.Helper()
	config := Config{
		Name: fleet.HostName(h.name), Address: h.space.Addr, Dir: h.dir, QEMU: h.qemu, CPUs: 4, Memory: fleet.GiB, Version: "test", BootID: "first", KeepDisks: DefaultKeepDisks,
		Keeper: h.fleet.keeper(pki.Identity{Kind: pki.Host, Name: h.name}),
		Log:    slog.New(slog.NewTextHandler(h.t.Output(), nil)).With("host", h.name),
	}
	c, err := client.Dial(client.Config{Server: h.fleet.url, TLS: h.clientConfig(config.Keeper)})
	if err != nil {
		h.t.Fatal(err)
	}
	config.Descriptors = h.keeps
	config.Servers = []Server{{URL: h.fleet.url, Client: c}}
	err = h.space.Do(func() (err error) {
		if config.Network, err = network.Open(network.Config{Underlay: h.space.Addr}); err != nil {
			return err
		}
		config.Peers.Listener, err = net.Listen("tcp", netip.AddrPortFrom(h.space.Addr, testPeerPort).String())
		return err
	})
	config.Peers.Dial = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		if look := h.onDial.Load(); look != nil {
			(*look)()
		}
		err = h.space.Do(func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	if err != nil {
		h.t.Fatal(err)
	}
	if h.agent, err = New(h.t.Context(), config); err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func(a *Agent) { ended <- a.Run(ctx) }(h.agent)
	stopped := false
	h.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			h.t.Errorf("agent of %s: %v", h.name, err)
		}
		c.Close()
	}
	h.t.Cleanup(h.stop)
	h.awaitSession()
}

func (h *testHost) clientConfig(keeper *pki.Keeper) *tls.Config {
	return keeper.ClientConfig(pki.Expect{Kind: pki.Server})
}

// instance gives the QEMU of a VM at an epoch.
func (h *testHost) instance(vm string, epoch fleet.Epoch) *qemu.Instance {
	h.t.Helper()
	m := h.agent.find(machineKey{fleet.VMName(vm), epoch})
	if m == nil {
		h.t.Fatalf("%s has no instance of %s at epoch %d", h.name, vm, epoch)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.instance
}

// runState asks QEMU for the state of an instance's vCPUs.
func (h *testHost) runState(vm string, epoch fleet.Epoch) qemu.RunState {
	h.t.Helper()
	state, err := h.instance(vm, epoch).Status(h.t.Context())
	if err != nil {
		h.t.Error(err)
	}
	return state
}

func (h *testHost) checkRunState(vm string, epoch fleet.Epoch, want qemu.RunState) {
	h.t.Helper()
	if got := h.runState(vm, epoch); got != want {
		h.t.Errorf("%s at epoch %d on %s is %q, want %q", vm, epoch, h.name, got, want)
	}
}

// taps gives the taps of the host as the kernel has them.
func (h *testHost) taps() []network.TapInfo {
	h.t.Helper()
	taps, err := h.agent.config.Network.Taps()
	if err != nil {
		h.t.Error(err)
	}
	return taps
}

// checkGates compares the modes of the host's gates with the wanted ones, in
// any order.
func (h *testHost) checkGates(when string, want ...network.Mode) {
	h.t.Helper()
	var got []network.Mode
	for _, tap := range h.taps() {
		got = append(got, tap.Gate.Mode)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		h.t.Errorf("%s: gates of %s are %v, want %v", when, h.name, got, want)
	}
}

// checkNothingLeft looks for a process, a tap or a folder of any instance.
func (h *testHost) checkNothingLeft() {
	h.t.Helper()
	if taps := h.taps(); len(taps) > 0 {
		h.t.Errorf("taps are left on %s: %+v", h.name, taps)
	}
	folders, err := filepath.Glob(filepath.Join(h.dir, "instances", "*"))
	if err != nil || len(folders) > 0 {
		h.t.Errorf("folders are left on %s: %v, %v", h.name, folders, err)
	}
	if processes := h.processes(); len(processes) > 0 {
		h.t.Errorf("processes are left on %s: %v", h.name, processes)
	}
	if machines := h.agent.all(); len(machines) > 0 {
		h.t.Errorf("%d machines are left on %s", len(machines), h.name)
	}
}

// processes gives the command lines of what runs in one of the host's
// instances' folders.
func (h *testHost) processes() (lines []string) {
	folders, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, link := range folders {
		if dir, err := os.Readlink(link); err != nil || !strings.HasPrefix(dir, h.dir+"/") {
			continue // it may have ended meanwhile
		}
		line, _ := os.ReadFile(filepath.Join(filepath.Dir(link), "cmdline"))
		lines = append(lines, strings.ReplaceAll(string(line), "\x00", " "))
	}
	return lines
}

// command runs a program in the host's namespace and gives its output.
func (h *testHost) command(name string, args ...string) string {
	h.t.Helper()
	out, err := h.space.Command(h.t.Context(), name, args...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}
