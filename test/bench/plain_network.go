package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"godwit.dev/godwit/internal/lab"
)

// Plain QEMU's network lies beside Godwit's on the same hosts: names, UDP port
// and addresses are others.
const (
	plainTap    = "plaintap0"
	plainBridge = "plainbr0"
	plainTunnel = "plainvx0"
	plainPort   = "8472" // Linux's own VXLAN port
	clientHost  = "h3"
	clientEnd   = "plaincl0" // in clientHost
)

var (
	plainMAC   = net.HardwareAddr{0x52, 0x54, 0, 0x91, 0, 1}
	plainGuest = netip.MustParsePrefix("10.40.0.10/24")
)

// connectPlain plugs a client into a network of bridges that learn, and gives
// the client.
func connectPlain(ctx context.Context, l *lab.Lab) (*lab.Namespace, error) {
	place, err := l.AddClient("plain", lab.Port{
		Host: clientHost, Device: clientEnd, MAC: net.HardwareAddr{2, 0, 0, 0xc1, 1, 0},
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.40.0.2/24")},
	})
	if err != nil {
		return nil, err
	}
	all := []string{hosts[0], hosts[1], clientHost}
	for _, host := range all {
		if err := bridge(ctx, l, host, all); err != nil {
			return nil, err
		}
	}
	return place, nil
}

// bridge joins a host's tap or client to the other hosts by a bridge and a
// VXLAN device that learn where everybody is.
func bridge(ctx context.Context, l *lab.Lab, host string, all []string) error {
	home := l.Host(host)
	commands := [][]string{
		{"ip", "link", "add", plainBridge, "type", "bridge", "stp_state", "0", "mcast_snooping", "0"},
		{"ip", "link", "add", plainTunnel, "type", "vxlan", "id", "42", "dstport", plainPort, "local", home.Addr.String(), "learning"},
		{"ip", "link", "set", plainTunnel, "master", plainBridge, "up"},
	}
	for _, other := range all {
		if other != host {
			commands = append(commands, []string{"bridge", "fdb", "append", "00:00:00:00:00:00", "dev", plainTunnel, "dst", l.Host(other).Addr.String()})
		}
	}
	if host == clientHost {
		commands = append(commands, []string{"ip", "link", "set", clientEnd, "master", plainBridge})
	} else {
		commands = append(commands,
			[]string{"ip", "tuntap", "add", "dev", plainTap, "mode", "tap", "vnet_hdr"},
			[]string{"ip", "link", "set", plainTap, "master", plainBridge, "up"})
	}
	commands = append(commands, []string{"ip", "link", "set", plainBridge, "up"})
	for _, command := range commands {
		if text, err := home.Command(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %v: %w: %s", host, command, err, text)
		}
	}
	return nil
}
