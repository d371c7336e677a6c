package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/witness"
)

// sighting is one frame of the guest on the wire before the client.
type sighting struct {
	at   time.Time
	host netip.Addr // that sent it
	// reply is what the frame holds; nil for others than echoes.
	reply *witness.Packet
}

const (
	// wireBuffer holds some seconds of what a busy machine does not get to read.
	wireBuffer = 64 << 20
	// wireNap bounds how long the end of a capture takes to be noticed.
	wireNap  = 100 * time.Millisecond
	frameMax = 9216
)

// wire captures what other hosts send to the client's, and keeps the guest's
// frames in the order of their arrival.
type wire struct {
	socket int
	guest  net.HardwareAddr

	over    atomic.Bool
	reading sync.WaitGroup
	frames  []sighting // the reader's, until it has ended
	err     error
}

// capture begins to capture the frames of a guest; stop must follow.
func capture(host *lab.Host, guest net.HardwareAddr) (*wire, error) {
	w := &wire{guest: guest}
	err := host.Do(func() (err error) {
		w.socket, err = openWire()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	w.reading.Go(func() { w.err = w.read() })
	return w, nil
}

// openWire opens a packet socket on the thread's HostDevice.
func openWire() (socket int, err error) {
	device, err := net.InterfaceByName(lab.HostDevice)
	if err != nil {
		return -1, err
	}
	const everything = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network byte order
	socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	nap := unix.NsecToTimeval(int64(wireNap))
	err = errors.Join(
		unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, wireBuffer),
		unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &nap),
		unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: device.Index}))
	if err != nil {
		return -1, errors.Join(err, unix.Close(socket))
	}
	return socket, nil
}

func (w *wire) read() error {
	buffer := make([]byte, frameMax)
	for !w.over.Load() {
		n, from, err := unix.Recvfrom(w.socket, buffer, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("capture: %w", err)
		}
		if link, ok := from.(*unix.SockaddrLinklayer); ok && link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if one, ok := parseFrame(buffer[:n], w.guest); ok {
			one.at = time.Now()
			w.frames = append(w.frames, one)
		}
	}
	return nil
}

// stop ends the capture and gives what was seen. The kernel says if it had no
// room for some of it: then nothing can be said.
func (w *wire) stop() ([]sighting, error) {
	w.over.Store(true)
	w.reading.Wait()
	counts, err := unix.GetsockoptTpacketStats(w.socket, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	err = errors.Join(w.err, err, unix.Close(w.socket))
	if err == nil && counts.Drops > 0 {
		err = fmt.Errorf("capture: %d frames were missed", counts.Drops)
	}
	return w.frames, err
}

// Where things are in a frame of the overlay: Ethernet, IPv4 without options,
// UDP, VXLAN (RFC 7348) and the guest's own frame.
const (
	ethernetSize = 14
	ipv4Size     = 20
	udpSize      = 8
	vxlanSize    = 8
	vxlanPort    = 4789
	innerAt      = ethernetSize + ipv4Size + udpSize + vxlanSize
	payloadAt    = innerAt + ethernetSize + ipv4Size + udpSize
)

// parseFrame tells of a frame whether the guest sent it, and by which host.
func parseFrame(frame []byte, guest net.HardwareAddr) (s sighting, ok bool) {
	const macAt = innerAt + 6 // of the inner frame's sender
	if len(frame) < innerAt+ethernetSize || !isUDP(frame) || !bytes.Equal(frame[macAt:macAt+len(guest)], guest) ||
		binary.BigEndian.Uint16(frame[ethernetSize+ipv4Size+2:]) != vxlanPort {
		return s, false
	}
	s.host, _ = netip.AddrFromSlice(frame[ethernetSize+12 : ethernetSize+16])
	if len(frame) > payloadAt && isUDP(frame[innerAt:]) {
		if packet, err := witness.ParsePacket(frame[payloadAt:]); err == nil && packet.Reply {
			s.reply = &packet
		}
	}
	return s, true
}

// isUDP: an Ethernet frame that holds UDP over IPv4.
func isUDP(frame []byte) bool {
	return len(frame) >= ethernetSize+ipv4Size+udpSize &&
		binary.BigEndian.Uint16(frame[12:]) == unix.ETH_P_IP && frame[ethernetSize] == 0x45 && frame[ethernetSize+9] == unix.IPPROTO_UDP
}
