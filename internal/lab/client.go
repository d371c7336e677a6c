package lab

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"

	"godwit.dev/godwit/internal/fleet"
)

// Port is one device of a client and its other end in a host.
type Port struct {
	Host      string // that the port is plugged into
	Device    string // the other end's name in the host, up, without an address
	MAC       net.HardwareAddr
	Addresses []netip.Prefix
	MTU       int // of both ends; 1500 if 0
}

// AddClient makes a client: a namespace whose devices eth0, eth1, … are the
// given ports. The agents of the hosts enslave the other ends into networks.
func (l *Lab) AddClient(name string, ports ...Port) (*Namespace, error) {
	if !memberRule.MatchString(name) {
		return nil, &fleet.Error{
			Code: fleet.Invalid, Op: "add client", Subject: name,
			Cause: "the name is not small letters, digits and dashes",
		}
	}
	for _, port := range ports {
		if l.Host(port.Host) == nil {
			return nil, &fleet.Error{
				Code: fleet.NotFound, Op: "add client", Subject: name,
				Cause: fmt.Sprintf("there is no host %q", port.Host),
			}
		}
	}
	client, err := l.addMember(name)
	if err != nil {
		return nil, fmt.Errorf("add client %s: %w", name, err)
	}
	for i, port := range ports {
		host := l.Host(port.Host)
		if err := connect(client, host.Namespace, "eth"+strconv.Itoa(i), port); err != nil {
			return nil, fmt.Errorf("add client %s: port %d: %w", name, i, err)
		}
	}
	return client, nil
}

func connect(client, host *Namespace, device string, port Port) error {
	mtu := port.MTU
	if mtu == 0 {
		mtu = 1500
	}
	err := client.Do(func() error {
		err := sysctl(map[string]string{ // nothing is sent unasked
			"ipv6/conf/default/accept_dad":           "0",
			"ipv6/conf/default/accept_ra":            "0",
			"ipv6/conf/default/router_solicitations": "0",
		})
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = device, mtu, port.MAC
		err = netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs, PeerName: port.Device, PeerMTU: uint32(mtu),
			PeerNamespace: netlink.NsFd(host.file.Fd()),
		})
		if err != nil {
			return err
		}
		return raise(device, port.Addresses...)
	})
	if err != nil {
		return err
	}
	return host.Do(func() error { return raise(port.Device) })
}
