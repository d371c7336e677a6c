package network

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

const (
	// TapPrefix begins the name of every tap made here.
	TapPrefix = "gwt"
	// QueueLength is how many frames each queue of a tap holds for its guest.
	// At the target of a migration it is what can wait during the blackout.
	QueueLength = 8192
	// MaxQueues is the kernel's limit of queues per tap (drivers/net/tun.c).
	MaxQueues = 256

	maxNameLength = unix.IFNAMSIZ - 1
	minMTU        = 68 // RFC 791
	maxMTU        = 65521
)

// TapConfig describes the tap of one port of a VM.
type TapConfig struct {
	Name    string            // begins with TapPrefix, at most 15 characters
	Network fleet.NetworkName // the overlay to join; "" joins no bridge
	Bridge  string            // of a provider network: the operator's bridge to join
	VLAN    uint16            // of a provider network: in that bridge; 0 is its own
	MAC     net.HardwareAddr  // of the guest, not of the tap
	Queues  int               // descriptors and rings; 0 means 1
	MTU     int               // bytes after the Ethernet header; 0 means the network's, or 1500; a provider's is its bridge's
	Gate    Gate
}

// Tap is one tap device with its gate and this process's own copy of its
// descriptors.
type Tap struct {
	host    *Host
	name    string
	ifindex int
	mac     net.HardwareAddr
	sticky  bool   // the bridge's own learning must not take the address away
	vlan    uint16 // of the bridge, for the address

	gateMu sync.Mutex   // orders changes of the gate
	fdMu   sync.RWMutex // read-held while the descriptors are in use
	fds    []int
}

// CreateTap makes a tap. Its gate is in force before it is up or in a bridge.
// Errors: fleet.Invalid, fleet.Exists, fleet.NotFound (network). After an
// error there is no tap.
func (h *Host) CreateTap(cfg TapConfig) (*Tap, error) {
	if err := cfg.complete(h); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	bridge, err := h.bridgeOf(&cfg)
	if err != nil {
		return nil, err
	}
	t := h.tapOf(cfg)
	t.mac = slices.Clone(cfg.MAC)
	err = h.ns.do(func() (err error) {
		t.fds, err = openQueues(cfg.Name, cfg.Queues, true)
		return err
	})
	if errors.Is(err, unix.EBUSY) {
		return nil, &fleet.Error{Code: fleet.Exists, Op: "create tap", Subject: cfg.Name,
			Cause: "a device of that name is there already", Err: err}
	}
	if err != nil {
		return nil, err
	}
	if err := t.setUp(cfg, bridge); err != nil {
		// Not persistent before setUp has succeeded: closing removes it.
		return nil, errors.Join(err, t.Close(), h.sweep())
	}
	return t, nil
}

// tapOf gives a Tap without descriptors, index and address.
func (h *Host) tapOf(cfg TapConfig) *Tap {
	return &Tap{host: h, name: cfg.Name, sticky: cfg.Bridge != "", vlan: cfg.VLAN}
}

// complete fills in the defaults and reports what is wrong.
func (cfg *TapConfig) complete(h *Host) error {
	if cfg.Queues == 0 {
		cfg.Queues = 1
	}
	var cause string
	switch {
	case !strings.HasPrefix(cfg.Name, TapPrefix) || len(cfg.Name) > maxNameLength || strings.ContainsAny(cfg.Name, "/: %"):
		cause = fmt.Sprintf("a tap's name begins with %s and has at most %d characters", TapPrefix, maxNameLength)
	case len(cfg.MAC) != 6 || cfg.MAC[0]&1 != 0:
		cause = fmt.Sprintf("%v is not a unicast Ethernet address", cfg.MAC)
	case cfg.Queues < 1 || cfg.Queues > MaxQueues:
		cause = fmt.Sprintf("a tap has 1 to %d queues, not %d", MaxQueues, cfg.Queues)
	case cfg.MTU != 0 && (cfg.MTU < minMTU || cfg.MTU > maxMTU):
		cause = fmt.Sprintf("an MTU is %d to %d bytes, not %d", minMTU, maxMTU, cfg.MTU)
	default:
		err := cfg.Gate.check(h.underlay)
		if err == nil {
			return nil
		}
		cause = err.Error()
	}
	return &fleet.Error{Code: fleet.Invalid, Op: "create tap", Subject: cfg.Name, Cause: cause}
}

// setUp brings a fresh tap from "exists" to "works", gate first.
func (t *Tap) setUp(cfg TapConfig, bridge netlink.Link) error {
	h := t.host
	link, err := h.nl.LinkByName(t.name)
	if err != nil {
		return fmt.Errorf("find tap %s: %w", t.name, err)
	}
	t.ifindex = link.Attrs().Index
	zero := make([]counterEntry, h.cpus)
	steps := []func() error{
		func() error { return h.nl.LinkSetAlias(link, tapAlias(cfg.Network)) },
		func() error { return h.ns.switchIPv6(t.name, false) },
		func() error { return h.nl.LinkSetMTU(link, cfg.MTU) },
		func() error { return h.nl.LinkSetTxQLen(link, QueueLength) },
		// Without a queueing discipline a frame is in the ring or dropped
		// when its filter's run ends; filters.await relies on that.
		func() error { return h.noQueue(link) },
		func() error { return h.filter.GwCounters.Put(uint32(t.ifindex), zero) },
		func() error { return h.putGate(t.ifindex, cfg.Gate.entry(t.mac)) },
		func() error { return h.attachGate(link) },
		func() error { return h.joinBridge(cfg, link, bridge) },
		func() error { return h.nl.LinkSetUp(link) },
		func() error { return keep(t.fds[0]) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("set up tap %s: %w", t.name, err)
		}
	}
	return nil
}

// joinBridge makes a tap a port of its bridge, if it is to have one.
func (h *Host) joinBridge(cfg TapConfig, link, bridge netlink.Link) error {
	if cfg.Bridge != "" {
		return h.joinProvider(cfg, link, bridge)
	}
	return h.join(link, bridge)
}

func (h *Host) noQueue(link netlink.Link) error {
	err := h.nl.QdiscReplace(&netlink.GenericQdisc{QdiscType: "noqueue", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT}})
	if err != nil {
		return fmt.Errorf("remove queueing discipline: %w", err)
	}
	return nil
}

// AdoptTap takes over a tap that an earlier process made. fds are copies of
// its queues, usually taken from its QEMU; they become the Tap's, also when
// AdoptTap fails. They need not be all, if the gate lets nothing to the guest.
// Without fds the queues are opened anew, which works only when nobody has them:
// until then the tap of a VM that has left forwards nothing. The gate in the kernel
// stays as it is; cfg.Gate is set only if there is none, and cfg.MAC matters only then.
func (h *Host) AdoptTap(cfg TapConfig, fds []int) (*Tap, error) {
	t := h.tapOf(cfg)
	t.fds = slices.Clone(fds)
	if err := t.adopt(cfg); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Tap) adopt(cfg TapConfig) error {
	h := t.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := cfg.complete(h); err != nil {
		return err
	}
	link, err := h.device(cfg.Name)
	if err != nil {
		return err
	}
	if link == nil || !isTap(link) {
		return &fleet.Error{Code: fleet.NotFound, Op: "adopt tap", Subject: cfg.Name, Cause: "there is no such tap"}
	}
	t.ifindex = link.Attrs().Index
	for _, fd := range t.fds {
		if err := checkQueue(fd, cfg.Name); err != nil {
			return err
		}
	}
	if len(t.fds) == 0 {
		if err := t.reopen(link, cfg.Queues); err != nil {
			return err
		}
	}
	entry, ok, err := h.gateOf(t.ifindex)
	if err != nil {
		return fmt.Errorf("read gate of %s: %w", t.name, err)
	}
	if ok {
		t.mac = slices.Clone(entry.MAC[:])
		return nil
	}
	t.mac = slices.Clone(cfg.MAC)
	return errors.Join(h.filter.GwCounters.Put(uint32(t.ifindex), make([]counterEntry, h.cpus)),
		h.putGate(t.ifindex, cfg.Gate.entry(t.mac)))
}

// reopen opens the queues of a tap that nobody has open.
func (t *Tap) reopen(link netlink.Link, queues int) error {
	h := t.host
	err := h.ns.do(func() (err error) {
		t.fds, err = openQueues(t.name, queues, false)
		return err
	})
	if errors.Is(err, unix.EBUSY) {
		return &fleet.Error{Code: fleet.Conflict, Op: "adopt tap", Subject: t.name, Err: err,
			Cause: "another process has its queues open", Hint: "take them over from that process"}
	}
	if err != nil {
		return err
	}
	// A tap that gets its carrier back works only once the kernel's link watch
	// has come round to it; setting it up anew does the same at once.
	if err := errors.Join(h.nl.LinkSetDown(link), h.nl.LinkSetUp(link)); err != nil {
		return fmt.Errorf("set tap %s up again: %w", t.name, err)
	}
	return nil
}

func checkQueue(fd int, tap string) error {
	name, err := queueName(fd)
	if err != nil {
		return err
	}
	if name != tap {
		return &fleet.Error{Code: fleet.Invalid, Op: "adopt tap", Subject: tap,
			Cause: fmt.Sprintf("descriptor %d is of %s", fd, name)}
	}
	return nil
}

// Name gives the device's name.
func (t *Tap) Name() string { return t.name }

// Check fails with NotFound when somebody has removed the device: then
// nothing comes by the descriptors any more, nor by a tunnel.
func (t *Tap) Check() error {
	link, err := t.host.nl.LinkByIndex(t.ifindex)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing || err == nil && link.Attrs().Name != t.name {
		return &fleet.Error{Code: fleet.NotFound, Op: "use tap", Subject: t.name, Cause: "somebody has removed the device",
			Hint: "the VM has no network at that port any more: godwit vm stop, then godwit vm start"}
	}
	if err != nil {
		return fmt.Errorf("look at tap %s: %w", t.name, err)
	}
	return nil
}

// FDs gives the Tap's own descriptors, one per queue, non-blocking, opened
// with IFF_VNET_HDR. They stay the Tap's: duplicate them for another process,
// and never through (*os.File).Fd, which puts the description that all copies
// share into blocking mode.
func (t *Tap) FDs() []int {
	t.fdMu.RLock()
	defer t.fdMu.RUnlock()
	return slices.Clone(t.fds)
}

// SetGate replaces the gate. In force for every frame that reaches the tap
// after it returns; Drain collects those that were in flight. fleet.Conflict
// for an epoch lower than the present one.
func (t *Tap) SetGate(g Gate) error {
	if err := g.check(t.host.underlay); err != nil {
		return &fleet.Error{Code: fleet.Invalid, Op: "set gate", Subject: t.name, Cause: err.Error()}
	}
	t.gateMu.Lock()
	defer t.gateMu.Unlock()
	present, ok, err := t.host.gateOf(t.ifindex)
	if err != nil {
		return fmt.Errorf("read gate of %s: %w", t.name, err)
	}
	if !ok {
		return &fleet.Error{Code: fleet.NotFound, Op: "set gate", Subject: t.name, Cause: "the tap has been removed"}
	}
	if g.Epoch < present.Epoch {
		return &fleet.Error{Code: fleet.Conflict, Op: "set gate", Subject: t.name,
			Cause: fmt.Sprintf("epoch %d is over, the gate is at epoch %d", g.Epoch, present.Epoch)}
	}
	if err := t.host.putGate(t.ifindex, g.entry(t.mac)); err != nil {
		return fmt.Errorf("set gate of %s to %v: %w", t.name, g.Mode, err)
	}
	return nil
}

// Gate reads the gate in force.
func (t *Tap) Gate() (Gate, error) {
	entry, ok, err := t.host.gateOf(t.ifindex)
	if err != nil {
		return Gate{}, fmt.Errorf("read gate of %s: %w", t.name, err)
	}
	if !ok {
		return Gate{}, &fleet.Error{Code: fleet.NotFound, Op: "read gate", Subject: t.name, Cause: "the tap has been removed"}
	}
	return entry.gate(t.host.underlay), nil
}

// Claim makes this host's bridge give the tap the frames for its guest, in an
// overlay as the next ApplyAddresses must, too. The target of a migration does it
// before it can become the owner. In a provider network the bridge learns where
// addresses are; what is claimed stays so until the tap is removed, wherever the
// guest is heard meanwhile.
func (t *Tap) Claim() error {
	t.host.mu.Lock()
	defer t.host.mu.Unlock()
	entry := portEntry(t.ifindex, station(t.mac))
	if t.sticky {
		entry.Flags |= netlink.NTF_STICKY
		entry.Vlan = int(t.vlan)
	}
	if err := t.host.nl.NeighSet(entry); err != nil {
		return fmt.Errorf("claim the address of %s: %w", t.name, err)
	}
	return nil
}

// Close releases the descriptors. The device and its gate stay. A second
// Close does nothing.
func (t *Tap) Close() error {
	t.fdMu.Lock()
	defer t.fdMu.Unlock()
	fds := t.fds
	t.fds = nil
	return closeFDs(fds)
}

// Remove deletes the device with its gate, counters and tunnels, and closes
// the Tap. A guest that still has the tap open loses its link.
func (t *Tap) Remove() error {
	t.host.mu.Lock()
	defer t.host.mu.Unlock()
	return errors.Join(t.Close(), t.host.removeTap(t.name, t.ifindex))
}
