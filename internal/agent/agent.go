package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/localdisk"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/qemu"
)

// Config is what an agent needs to know of its host.
type Config struct {
	Name    fleet.HostName
	Address netip.Addr // where other hosts reach this one: tunnels and memory
	Dir     string     // instances live here; must survive the agent
	QEMU    string     // the binary, e.g. "qemu-system-x86_64"
	CPUs    int        // that VMs may have together
	Memory  fleet.Bytes
	Version string
	BootID  string // other after each reboot of the host

	DisksDir  string        // local disks live here; "" is a folder in Dir
	KeepDisks time.Duration // those of a VM that has moved are kept so long

	Keeper  *pki.Keeper
	Servers []Server                                 // at least one; tried in this order
	Dial    func(url string) (*client.Client, error) // reaches a server that another one names
	Network *network.Host
	Peers   Peers
	Log     *slog.Logger
	// Descriptors keeps taps open for the next agent; nil if nobody does.
	Descriptors Descriptors
}

// Agent runs one host.
type Agent struct {
	config   Config
	lock     *os.File      // of Config.Dir
	process  string        // tells this run of an agent from others
	features qemu.Features // of the QEMU that is installed: for what is launched
	servers  *servers
	log      *slog.Logger

	mark   atomic.Pointer[godwitv1.StoreMark] // see markFile
	marked chan struct{}                      // that it is to be written
	spent  *spent

	volumes *volumeClients

	disks       *localdisk.Store
	disksMarked chan struct{} // that one of its copies is old

	// Those that are under way, as many as each may be.
	shows, measures, probes chan struct{}

	mu       sync.Mutex
	machines map[machineKey]*machine
	session  *session       // nil while there is none
	workers  sync.WaitGroup // of the machines, and what of them uses the network

	addressMu sync.Mutex
	addresses *godwitv1.AddressMap // the newest that was applied
}

// machineKey is one instance: a VM at an epoch.
type machineKey struct {
	vm    fleet.VMName
	epoch fleet.Epoch
}

// New asks the host's QEMU what it can do and adopts the instances that an
// earlier agent left.
func New(ctx context.Context, config Config) (*Agent, error) {
	lock, err := lockDir(config.Dir)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		config: config, lock: lock, servers: newServers(config.Servers, config.Dial),
		log: config.Log, process: rand.Text(), machines: map[machineKey]*machine{}, marked: make(chan struct{}, 1),
		volumes: newVolumeClients(config.Keeper), disksMarked: make(chan struct{}, 1), shows: make(chan struct{}, showsMax),
		measures: make(chan struct{}, measuresMax), probes: make(chan struct{}, probesMax),
	}
	if err := a.load(ctx); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if err := a.adoptAll(ctx); err != nil {
		return a, err
	}
	a.dropStrangers()
	return a, nil
}

// load asks the host's QEMU, and reads what an earlier agent has kept for all VMs.
func (a *Agent) load(ctx context.Context) (err error) {
	if a.features, err = qemu.Probe(ctx, a.config.QEMU, filepath.Join(a.config.Dir, "probe")); err != nil {
		return err
	}
	if a.disks, err = localdisk.Open(a.config.disksDir()); err != nil {
		return err
	}
	mark, err := loadMark(a.config.Dir)
	if err != nil {
		return err
	}
	a.mark.Store(mark)
	a.spent, err = loadSpent(a.config.Dir)
	return err
}

// lockDir keeps a second agent from the host's instances for as long as the
// file is open; the kernel lets go of it with the process.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&fleet.Error{
			Code: fleet.Conflict, Op: "run agent", Subject: dir, Cause: "another agent is using this folder", Err: err,
			Hint: "one agent runs a host; for another one on this machine give --dir a folder of its own",
		}, lock.Close())
	}
	return lock, nil
}

const lockFile = "agent.lock"

// QEMUVersion is that of the host's QEMU, as it says it.
func (a *Agent) QEMUVersion() string { return a.features.Version }

// Run serves the server until ctx ends. Commands that are being carried out
// then are cut off, for the next agent to take up, and nothing acts on the host
// any more when Run returns. Instances run on after it.
func (a *Agent) Run(ctx context.Context) error {
	var tasks sync.WaitGroup
	tasks.Go(func() { _ = a.config.Keeper.Run(ctx) })
	tasks.Go(func() { a.keepSession(ctx) })
	tasks.Go(func() { a.keepMarks(ctx) })
	tasks.Go(func() { a.renewVolumes(ctx) })
	tasks.Go(func() { a.keepDisks(ctx) })
	for _, m := range a.all() {
		a.start(ctx, m)
	}
	tasks.Go(func() { a.servePeers(ctx) })
	<-ctx.Done()
	tasks.Wait()
	a.workers.Wait()
	return a.close()
}

// close lets go of everything; all of it stays as it is.
func (a *Agent) close() error {
	a.volumes.close()
	var errs []error
	for _, m := range a.all() {
		errs = append(errs, m.letGo())
	}
	return errors.Join(append(errs, a.config.Network.Close(), a.lock.Close())...)
}

func (a *Agent) all() []*machine {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.machines))
}

func (a *Agent) find(key machineKey) *machine {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.machines[key]
}

// add registers a machine; false when its key is taken.
func (a *Agent) add(m *machine) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.machines[m.key] != nil {
		return false
	}
	a.machines[m.key] = m
	return true
}

// remove forgets a machine; a second time does nothing.
func (a *Agent) remove(m *machine) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.machines[m.key] == m {
		delete(a.machines, m.key)
		close(m.gone)
		if m.leave != nil {
			m.leave()
		}
	}
}

// say sends a report if there is a session. Without one nothing is lost: the
// server asks again for every answer that it misses, and facts are told anew
// when a session begins.
func (a *Agent) say(report *godwitv1.Report) {
	a.mu.Lock()
	session := a.session
	a.mu.Unlock()
	if session != nil {
		session.say(report)
	}
}
