package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// lab is a set of hosts, each a network namespace without a name, joined by a
// bridge in one more. Everything vanishes with its last file descriptor.
type lab struct {
	hosts    []*Host
	underlay []netip.Addr
	spaces   []namespace
}

const underlayMTU = jumbo + 100

// newLab makes n hosts with addresses underlay(1), underlay(2) and so on.
func newLab(t *testing.T, n int, underlay func(int) netip.Prefix) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	l := &lab{}
	hub := newNamespace(t)
	hubLinks := handleIn(t, hub)
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "hub", MTU: underlayMTU}}
	must(t, hubLinks.LinkAdd(bridge))
	must(t, hubLinks.LinkSetUp(bridge))
	for i := range n {
		space := newNamespace(t)
		links := handleIn(t, space)
		attrs := netlink.LinkAttrs{Name: fmt.Sprintf("host%d", i), MTU: underlayMTU}
		must(t, hubLinks.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(space.fd)}))
		port, err := hubLinks.LinkByName(attrs.Name)
		must(t, err)
		must(t, hubLinks.LinkSetMaster(port, bridge))
		must(t, hubLinks.LinkSetUp(port))
		eth0, err := links.LinkByName("eth0")
		must(t, err)
		must(t, links.LinkSetMTU(eth0, underlayMTU))
		prefix := underlay(i + 1)
		must(t, links.AddrAdd(eth0, &netlink.Addr{Flags: unix.IFA_F_NODAD, IPNet: &net.IPNet{
			IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}}))
		must(t, links.LinkSetUp(eth0))
		l.underlay = append(l.underlay, prefix.Addr())
		l.spaces = append(l.spaces, space)
		l.hosts = append(l.hosts, nil)
		t.Cleanup(func() { l.shut(t, i) })
		l.open(t, i)
	}
	return l
}

func underlay4(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("10.77.0.%d/24", i)) }
func underlay6(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("fd77::%x/64", i)) }

// open opens host i in its namespace, anew if it is open already.
func (l *lab) open(t *testing.T, i int) *Host {
	t.Helper()
	l.shut(t, i)
	var host *Host
	must(t, l.spaces[i].do(func() (err error) {
		host, err = Open(Config{Underlay: l.underlay[i]})
		return err
	}))
	l.hosts[i] = host
	return host
}

// shut closes host i, as the end of its agent does.
func (l *lab) shut(t *testing.T, i int) {
	t.Helper()
	if host := l.hosts[i]; host != nil {
		l.hosts[i] = nil
		must(t, host.Close())
	}
}

// network sets an overlay up on all hosts.
func (l *lab) network(t *testing.T, n Network) {
	t.Helper()
	for _, h := range l.hosts {
		must(t, h.EnsureNetwork(n))
	}
}

func newNamespace(t *testing.T) namespace {
	t.Helper()
	type result struct {
		space namespace
		err   error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends here; the descriptor keeps the namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: err}
			return
		}
		space, err := callersNamespace()
		made <- result{space, err}
	}()
	r := <-made
	must(t, r.err)
	t.Cleanup(func() { must(t, r.space.close()) })
	return r.space
}

func handleIn(t *testing.T, space namespace) *netlink.Handle {
	t.Helper()
	var handle *netlink.Handle
	must(t, space.do(func() (err error) {
		handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	}))
	t.Cleanup(handle.Close)
	return handle
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0x77, 0, last} }

// tap makes a tap that is removed with the test.
func (l *lab) tap(t *testing.T, host int, cfg TapConfig) *Tap {
	t.Helper()
	tap, err := l.hosts[host].CreateTap(cfg)
	must(t, err)
	t.Cleanup(func() { must(t, tap.Close()) })
	return tap
}

// numbered is a frame of the given size from one station to another, with a
// sequence number. It has an Ethernet type for local experiments (IEEE 802).
func numbered(to, from net.HardwareAddr, sequence uint32, size int) []byte {
	frame := append(append([]byte(nil), to...), from...)
	frame = append(frame, 0x88, 0xb5)
	frame = binary.BigEndian.AppendUint32(frame, sequence)
	return append(frame, make([]byte, max(size-len(frame), 0))...)
}

func sequenceOf(frame []byte) (uint32, bool) {
	if len(frame) < 18 || frame[12] != 0x88 || frame[13] != 0xb5 {
		return 0, false
	}
	return binary.BigEndian.Uint32(frame[14:]), true
}

// guest stands in for QEMU: it reads and writes the descriptors of a tap.
type guest struct {
	fd int
}

func guestOf(tap *Tap) guest { return guest{fd: tap.FDs()[0]} }

// send sends a frame as the guest.
func (g guest) send(t *testing.T, frame []byte) {
	t.Helper()
	_, err := unix.Write(g.fd, append(make([]byte, vnetHeader), frame...))
	must(t, err)
}

// receive gives the next frame for the guest; nil if none comes before ctx
// ends. Like wire.send it may be called from any goroutine.
func (g guest) receive(ctx context.Context, t *testing.T) []byte {
	t.Helper()
	buffer := make([]byte, vnetHeader+maxFrame)
	for {
		n, err := unix.Read(g.fd, buffer)
		if err == nil {
			return buffer[vnetHeader:n]
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			t.Errorf("read tap: %v", err)
			return nil
		}
		left := time.Until(deadline(ctx))
		if left <= 0 || ctx.Err() != nil {
			return nil
		}
		timeout := int(min(left, 10*time.Millisecond)/time.Millisecond) + 1
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(g.fd), Events: unix.POLLIN}}, timeout); err != nil && err != unix.EINTR {
			t.Errorf("poll tap: %v", err)
			return nil
		}
	}
}

func deadline(ctx context.Context) time.Time {
	if d, ok := ctx.Deadline(); ok {
		return d
	}
	return time.Now().Add(time.Hour)
}

// waiting gives the sequence numbers of all frames that wait for the guest
// now. In these labs a frame is delivered before the call that sends it ends.
func (g guest) waiting(t *testing.T) (sequences []uint32) {
	t.Helper()
	ended, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	for frame := g.receive(ended, t); frame != nil; frame = g.receive(ended, t) {
		if sequence, ok := sequenceOf(frame); ok {
			sequences = append(sequences, sequence)
		}
	}
	return sequences
}

// wire is a program on a host that sends frames into a device from outside,
// as a bridge would.
type wire struct {
	fd int
	to *unix.SockaddrLinklayer
}

func (l *lab) wire(t *testing.T, host int, device string) wire {
	t.Helper()
	w := wire{fd: -1}
	must(t, l.spaces[host].do(func() (err error) {
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	t.Cleanup(func() { must(t, unix.Close(w.fd)) })
	link, err := l.hosts[host].nl.LinkByName(device)
	must(t, err)
	w.to = &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}
	return w
}

// send sends a frame. A filter that drops it makes the kernel say ENOBUFS.
func (w wire) send(t *testing.T, frame []byte) {
	t.Helper()
	if err := unix.Sendto(w.fd, frame, 0, w.to); err != nil && err != unix.ENOBUFS {
		t.Errorf("send: %v", err)
	}
}

func gate(mode Mode) Gate { return Gate{Mode: mode, Epoch: 1} }

func redirectTo(remote netip.Addr, id fleet.TunnelID) Gate {
	return Gate{Mode: Redirect, Epoch: 1, Tunnel: id, Remote: remote}
}
