package lab

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	fabricName = "fabric"
	// HostBridge is the operator's bridge on each host of a fabric.
	HostBridge = "prod0"
	// uplinkDevice is that bridge's port to the fabric.
	uplinkDevice = "uplink0"
)

// AddFabric makes a physical network: a switch that learns, in a namespace of its own,
// and on each of the hosts a bridge with an uplink to it, as an operator makes them.
func (l *Lab) AddFabric(ctx context.Context, mtu int, hosts ...string) error {
	fabric, err := l.addMember(fabricName)
	if err != nil {
		return err
	}
	if err := fabric.Do(func() error { return makeSwitch(mtu) }); err != nil {
		return fmt.Errorf("fabric: %w", err)
	}
	for i, name := range hosts {
		host := l.Host(name)
		if err := fabric.Do(func() error { return plug(i, host.Namespace, uplinkDevice, mtu) }); err != nil {
			return fmt.Errorf("fabric: host %s: %w", name, err)
		}
		if err := host.Do(func() error { return makeHostBridge(mtu) }); err != nil {
			return fmt.Errorf("bridge of host %s: %w", name, err)
		}
		if err := host.Do(func() error { return awaitPorts(ctx, 1) }); err != nil {
			return fmt.Errorf("bridge of host %s: %w", name, err)
		}
	}
	return fabric.Do(func() error { return awaitPorts(ctx, len(hosts)) })
}

// makeHostBridge makes the bridge of a host, in the thread's namespace, around its
// uplink.
func makeHostBridge(mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = HostBridge, mtu
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return err
	}
	bridge, err := netlink.LinkByName(HostBridge)
	if err != nil {
		return err
	}
	uplink, err := netlink.LinkByName(uplinkDevice)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(uplink, bridge); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(uplink); err != nil {
		return err
	}
	return netlink.LinkSetUp(bridge)
}

// RemoveHostBridge deletes the bridge that AddFabric has made on a host.
func (l *Lab) RemoveHostBridge(host string) error {
	return l.Host(host).Do(func() error {
		bridge, err := netlink.LinkByName(HostBridge)
		if err != nil {
			return err
		}
		return netlink.LinkDel(bridge)
	})
}

// OpenPacket gives the frames of one Ethernet type that a device receives, each with
// one Read. The caller closes it.
func (n *Namespace) OpenPacket(device string, ethertype uint16) (frames *os.File, err error) {
	protocol := ethertype<<8 | ethertype>>8 // in network order
	err = n.Do(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(protocol))
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Attrs().Index}); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		frames = os.NewFile(uintptr(fd), "frames of "+device)
		return nil
	})
	return frames, err
}

// JoinFabric gives a client a device at the fabric's switch, whose other end has the
// same name. Of port its MAC, Addresses and MTU count.
func (l *Lab) JoinFabric(ctx context.Context, client *Namespace, device string, port Port) error {
	l.mu.Lock()
	fabric := l.members[fabricName]
	l.mu.Unlock()
	port.Device = device
	if err := connect(client, fabric, device, port); err != nil {
		return fmt.Errorf("join the fabric: %w", err)
	}
	return fabric.Do(func() error {
		end, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		hub, err := netlink.LinkByName(switchName)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(end, hub); err != nil {
			return err
		}
		count, err := portsOf(hub)
		if err != nil {
			return err
		}
		return awaitPorts(ctx, count)
	})
}

// portsOf counts the ports of a bridge in the thread's namespace.
func portsOf(bridge netlink.Link) (count int, err error) {
	links, err := netlink.LinkList()
	for _, link := range links {
		if link.Attrs().MasterIndex == bridge.Attrs().Index {
			count++
		}
	}
	return count, err
}
