package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

// TestPortIsTaken has another program hold the ports of the tunnels and of the
// overlays, first one and then the other.
func TestPortIsTaken(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	space := newNamespace(t)
	open := func() (host *Host, err error) {
		err = space.do(func() (err error) {
			host, err = Open(Config{Underlay: netip.MustParseAddr("10.77.0.1")})
			return err
		})
		return host, err
	}
	release := take(t, space, 4790)
	_, err := open()
	isTaken(t, err, "set up device gw-tun: UDP port 4790")
	release()
	host, err := open()
	must(t, err)
	t.Cleanup(func() { must(t, errors.Join(host.Purge(), host.Close())) })

	release = take(t, space, 4789)
	isTaken(t, host.EnsureNetwork(blue), "set up device gwx-5: UDP port 4789")
	release()
	must(t, host.EnsureNetwork(blue))
}

// take binds a UDP port in the namespace and gives what frees it.
func take(t *testing.T, space namespace, port int) (release func()) {
	t.Helper()
	var conn net.PacketConn
	must(t, space.do(func() (err error) {
		conn, err = (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", fmt.Sprintf(":%d", port))
		return err
	}))
	t.Cleanup(func() { _ = conn.Close() })
	return func() { must(t, conn.Close()) }
}

func isTaken(t *testing.T, err error, want string) {
	t.Helper()
	if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), want) || !strings.Contains(fleet.HintOf(err), "ss -ulpn") {
		t.Errorf("code %s, %v; hint %q; want %q", fleet.CodeOf(err), err, fleet.HintOf(err), want)
	}
}
