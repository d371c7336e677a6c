package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/lab/witness"
)

// port is a network device that is up, with its addresses.
type port struct {
	name      string
	mac       net.HardwareAddr
	addresses []netip.Prefix
	queues    int
}

// stream counts what the TCP echoes of all ports have sent back.
type stream struct{ bytes atomic.Uint64 }

// openPort finds the device of the wanted MAC and brings it up.
func openPort(wanted witness.Port) (port, error) {
	link, err := findLink(wanted.MAC)
	if err != nil {
		return port{}, err
	}
	p := port{name: link.Attrs().Name, mac: wanted.MAC, addresses: wanted.Addresses}
	if err := quieten(p.name); err != nil {
		return port{}, err
	}
	if p.queues, err = useAllQueues(p.name); err != nil {
		return port{}, fmt.Errorf("queues: %w", err)
	}
	for _, prefix := range p.addresses {
		address := &netlink.Addr{IPNet: &net.IPNet{
			IP:   prefix.Addr().AsSlice(),
			Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
		}}
		if prefix.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := netlink.AddrAdd(link, address); err != nil {
			return port{}, fmt.Errorf("address %s: %w", prefix, err)
		}
	}
	return p, netlink.LinkSetUp(link)
}

func findLink(mac net.HardwareAddr) (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		if bytes.Equal(link.Attrs().HardwareAddr, mac) {
			return link, nil
		}
	}
	return nil, errors.New("no device has this MAC")
}

// quieten keeps the device from sending what nobody asked for, and makes it
// answer ARP for its own addresses only: two ports may share a subnet.
func quieten(name string) error {
	for path, value := range map[string]string{
		"ipv6/conf/" + name + "/accept_dad":           "0",
		"ipv6/conf/" + name + "/accept_ra":            "0",
		"ipv6/conf/" + name + "/router_solicitations": "0",
		"ipv4/conf/" + name + "/arp_ignore":           "1",
		"ipv4/conf/" + name + "/arp_announce":         "2",
		// A guest of little memory refuses packets long before the echo's receive
		// buffer is full: the limit of all UDP sockets together, in pages, comes
		// from the memory's size.
		"ipv4/udp_mem": "65536 65536 65536",
	} {
		if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// ethtoolChannels is struct ethtool_channels of linux/ethtool.h.
type ethtoolChannels struct {
	cmd                                        uint32
	maxRx, maxTx, maxOther, maxCombined        uint32
	rxCount, txCount, otherCount, combinedUsed uint32
}

const (
	ethtoolGetChannels = 0x3c
	ethtoolSetChannels = 0x3d
)

// useAllQueues turns on every queue pair of a device, more than the CPUs the
// driver would stop at, and says how many there are.
func useAllQueues(name string) (int, error) {
	c := ethtoolChannels{cmd: ethtoolGetChannels}
	err := ethtool(name, unsafe.Pointer(&c))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	if c.combinedUsed == c.maxCombined {
		return int(c.combinedUsed), nil
	}
	c.cmd, c.combinedUsed = ethtoolSetChannels, c.maxCombined
	return int(c.maxCombined), ethtool(name, unsafe.Pointer(&c))
}

func ethtool(name string, command unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of the union in struct ifreq
	}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	request.data = command
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return errno
	}
	return nil
}

// control prepares a socket before it is bound: it belongs to the device, so
// that an answer leaves by the port that the question came in by, and it has
// room for what a hand-over held back.
func (p port) control(network, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.BindToDevice(int(fd), p.name)
		if failed == nil && strings.HasPrefix(network, "udp") {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, witness.ReceiveBuffer)
		}
	})
	return errors.Join(err, failed)
}

// serve starts the echoes and the control port on every address of p.
func (g *guest) serve(ctx context.Context, p port) error {
	bind := net.ListenConfig{Control: p.control}
	for _, prefix := range p.addresses {
		at := func(port int) string { return net.JoinHostPort(prefix.Addr().String(), strconv.Itoa(port)) }
		packets, err := bind.ListenPacket(ctx, "udp", at(witness.UDPPort))
		if err != nil {
			return err
		}
		echoes, err := bind.Listen(ctx, "tcp", at(witness.TCPPort))
		if err != nil {
			return err
		}
		control, err := bind.Listen(ctx, "tcp", at(witness.ControlPort))
		if err != nil {
			return err
		}
		go witness.ServeUDP(ctx, packets.(*net.UDPConn), g.ledger, g.boot, g.clock)
		go witness.ServeTCP(ctx, echoes, &g.stream.bytes)
		go witness.ServeControl(ctx, control, g.handle)
	}
	return nil
}

// report gives the port's counters; those of a port that has gone are zero.
func (p port) report() witness.PortReport {
	r := witness.PortReport{Name: p.name, MAC: p.mac.String(), Queues: p.queues}
	for _, prefix := range p.addresses {
		r.Addresses = append(r.Addresses, prefix.String())
	}
	link, err := netlink.LinkByName(p.name)
	if err != nil {
		return r
	}
	r.MTU = link.Attrs().MTU
	if s := link.Attrs().Statistics; s != nil {
		r.RxPackets, r.TxPackets, r.RxDropped = s.RxPackets, s.TxPackets, s.RxDropped
	}
	return r
}
