package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// Limits and defaults.
const (
	DefaultMTU = 9000 // of the network between the hosts, bytes
	MinMTU     = 1600 // a full frame of a guest in a VXLAN tunnel, and some room
	MaxHosts   = 200
)

// HostDevice is the name of a host's device in the network between the hosts.
const HostDevice = "eth0"

// substrateName is the member that the others may not be called.
const substrateName = "net"

var (
	nameRule   = regexp.MustCompile(`^[a-z0-9]{1,16}$`)
	memberRule = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
)

// Config says what lab to make.
type Config struct {
	Name  string   // small letters and digits; made up if empty
	Hosts []string // names; the first has address 10.77.0.10, the next .11
	MTU   int      // between the hosts; DefaultMTU if 0
}

// Host is a member of the network between the hosts.
type Host struct {
	*Namespace
	Addr netip.Addr // of HostDevice
}

// Lab is a running lab, owned by this process.
type Lab struct {
	substrate *Namespace
	owner     *lock

	mu      sync.Mutex
	closed  bool
	info    Info
	members map[string]*Namespace
	hosts   map[string]*Host
}

// New removes the labs of owners that have died, and makes a new one. The
// caller closes it.
func New(ctx context.Context, config Config) (*Lab, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, &fleet.Error{
			Code: fleet.Denied, Op: "make lab", Subject: config.Name,
			Cause: "only root may make network namespaces", Hint: "run it as root, for example with sudo",
		}
	}
	l, err := begin(ctx, config)
	if err != nil {
		return nil, err
	}
	if err := l.build(ctx, config); err != nil {
		return nil, errors.Join(fmt.Errorf("make lab %s: %w", config.Name, err), l.Close())
	}
	return l, nil
}

func (c *Config) complete() error {
	if c.Name == "" {
		c.Name = strings.ToLower(rand.Text()[:6])
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	invalid := fleet.Error{Code: fleet.Invalid, Op: "make lab", Subject: c.Name}
	seen := map[string]bool{substrateName: true, fabricName: true}
	for _, host := range c.Hosts {
		if !memberRule.MatchString(host) || seen[host] {
			invalid.Cause = fmt.Sprintf("%q cannot be the name of a host", host)
			invalid.Hint = "host names are small letters, digits and dashes, each given once, and not " + substrateName
			return &invalid
		}
		seen[host] = true
	}
	switch {
	case !nameRule.MatchString(c.Name):
		invalid.Cause = "the name is not 1 to 16 small letters and digits"
	case len(c.Hosts) > MaxHosts:
		invalid.Cause = fmt.Sprintf("%d hosts are more than %d", len(c.Hosts), MaxHosts)
	case c.MTU < MinMTU || c.MTU > 65535:
		invalid.Cause = fmt.Sprintf("MTU %d is not within %d..65535", c.MTU, MinMTU)
	default:
		return nil
	}
	return &invalid
}

// begin records the lab as ours before anything of it is made.
func begin(ctx context.Context, config Config) (*Lab, error) {
	all, err := lockAll(ctx)
	if err != nil {
		return nil, err
	}
	defer all.release()
	if _, err := sweep(); err != nil {
		return nil, fmt.Errorf("remove labs left behind: %w", err)
	}
	if err := os.Mkdir(folder(config.Name), 0o700); err != nil {
		return nil, &fleet.Error{
			Code: fleet.Exists, Op: "make lab", Subject: config.Name, Err: err,
			Cause: "a lab of this name is running, or was kept", Hint: "choose another name, or remove that lab",
		}
	}
	owner, err := tryLock(filepath.Join(folder(config.Name), "lock"))
	if err != nil {
		return nil, err
	}
	l := &Lab{
		owner: owner, members: make(map[string]*Namespace), hosts: make(map[string]*Host),
		info: Info{
			Name: config.Name, Owner: os.Getpid(), Created: time.Now(),
			Dir: filepath.Join(os.TempDir(), "godwit-lab-"+config.Name+"-"+strings.ToLower(rand.Text()[:8])),
		},
	}
	if err := l.info.save(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context, config Config) (err error) {
	if err := os.Mkdir(l.info.Dir, 0o700); err != nil {
		return err
	}
	if l.substrate, err = l.addMember(substrateName); err != nil {
		return err
	}
	err = l.substrate.Do(func() error { return makeSwitch(config.MTU) })
	if err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	for i, name := range config.Hosts {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.addHost(i, name, config.MTU); err != nil {
			return fmt.Errorf("host %s: %w", name, err)
		}
	}
	return l.substrate.Do(func() error { return awaitPorts(ctx, len(config.Hosts)) })
}

// awaitPorts waits until the switch in the thread's namespace forwards on so
// many ports. The kernel tells a bridge of a port's carrier some time after
// the port has come up, and until then frames are dropped.
func awaitPorts(ctx context.Context, count int) error {
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ListExisting: true})
	if err != nil {
		return err
	}
	defer func() {
		close(done)
		for range updates { // lets the subscription see that it is done
		}
	}()
	ready := make(map[int32]bool)
	for len(ready) < count {
		select {
		case update, ok := <-updates:
			if !ok {
				return errors.New("the kernel ended the subscription to its devices")
			}
			attrs := update.Attrs()
			if attrs.MasterIndex != 0 && attrs.OperState == netlink.OperUp {
				ready[update.Index] = true
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for the switch: %w", ctx.Err())
		}
	}
	return nil
}

// addMember makes a namespace, recorded before it is made.
func (l *Lab) addMember(name string) (*Namespace, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.members[name] != nil {
		return nil, fmt.Errorf("there is a member %s already", name)
	}
	full := "gw-" + l.info.Name + "-" + name
	l.info.Namespaces = append(l.info.Namespaces, full)
	if err := l.info.save(); err != nil {
		return nil, err
	}
	namespace, err := makeNamespace(full)
	if err != nil {
		return nil, err
	}
	l.members[name] = namespace
	return namespace, nil
}

const switchName = "br0"

// quiet keeps devices that are made later from speaking IPv6 by themselves.
var quiet = map[string]string{"ipv6/conf/default/disable_ipv6": "1"}

// makeSwitch makes the bridge between the hosts, in the thread's namespace.
func makeSwitch(mtu int) error {
	if err := sysctl(quiet); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = switchName, mtu
	snooping := false // no querier here: it would only delay multicast
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	return netlink.LinkSetUp(bridge)
}

func (l *Lab) addHost(index int, name string, mtu int) error {
	namespace, err := l.addMember(name)
	if err != nil {
		return err
	}
	if err := namespace.Do(func() error { return sysctl(quiet) }); err != nil {
		return err
	}
	err = l.substrate.Do(func() error { return plug(index, namespace, HostDevice, mtu) })
	if err != nil {
		return err
	}
	prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(10 + index)}), 24)
	err = namespace.Do(func() error { return raise(HostDevice, prefix) })
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts[name] = &Host{Namespace: namespace, Addr: prefix.Addr()}
	return nil
}

// plug joins a host to the switch in the thread's namespace, by a device of the host.
func plug(index int, host *Namespace, device string, mtu int) error {
	bridge, err := netlink.LinkByName(switchName)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = "port"+strconv.Itoa(index), mtu, bridge.Attrs().Index
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: device, PeerMTU: uint32(mtu),
		PeerNamespace: netlink.NsFd(host.file.Fd()),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	return netlink.LinkSetUp(veth)
}

// raise gives a device of the thread's namespace its addresses and brings it
// up.
func raise(device string, prefixes ...netip.Prefix) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	for _, prefix := range prefixes {
		address := &netlink.Addr{IPNet: &net.IPNet{
			IP:   prefix.Addr().AsSlice(),
			Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
		}}
		if prefix.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := netlink.AddrAdd(link, address); err != nil {
			return fmt.Errorf("address %s: %w", prefix, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.info.Name }

// Dir is a folder that is removed with the lab.
func (l *Lab) Dir() string { return l.info.Dir }

// Host gives a host of the Config, or nil.
func (l *Lab) Host(name string) *Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hosts[name]
}

// Keep leaves the lab in place when this process ends, until Remove. Close
// then only lets go of it.
func (l *Lab) Keep() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.info.Kept = true
	return l.info.save()
}

// Close kills what runs in the lab and removes it. The owner's own sockets and
// goroutines in it are the owner's to close, before. A second Close does
// nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil // its name may be another lab's by now
	}
	l.closed = true
	var held []*os.File
	for _, namespace := range l.members {
		held = append(held, namespace.file)
		defer namespace.file.Close()
	}
	defer l.owner.release()
	if l.info.Kept {
		return nil
	}
	return l.info.remove(held...)
}
