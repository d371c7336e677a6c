package network

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ports are two packet sockets that send and never receive: inject sends
// through the filters of a device, bypass past them.
type ports struct {
	inject int
	bypass int
}

const (
	sendBuffer        = 4 << 20
	sendTimeoutMillis = 1000
	drainedMark       = 0x67774472 // DRAINED of bpf/gate.c
)

// openPorts runs on a thread of the namespace.
func openPorts() (p ports, err error) {
	p = ports{inject: -1, bypass: -1}
	if p.inject, err = openPort(); err != nil {
		return p, err
	}
	if err := unix.SetsockoptInt(p.inject, unix.SOL_SOCKET, unix.SO_MARK, drainedMark); err != nil {
		return p, fmt.Errorf("set up packet socket: %w", err)
	}
	if p.bypass, err = openPort(); err != nil {
		return p, err
	}
	if err := unix.SetsockoptInt(p.bypass, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return p, fmt.Errorf("set up packet socket: %w", err)
	}
	return p, nil
}

func openPort() (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open packet socket: %w", err)
	}
	timeout := unix.NsecToTimeval(sendTimeoutMillis * 1e6)
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout))
	if err != nil {
		return -1, errors.Join(fmt.Errorf("set up packet socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func (p ports) close() error {
	var errs []error
	for _, fd := range []int{p.inject, p.bypass} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// sendFrame sends one frame, preceded by a virtio_net_hdr.
func sendFrame(fd int, frame []byte, to *unix.SockaddrLinklayer) error {
	for {
		err := unix.Sendto(fd, frame, 0, to)
		if err != unix.EINTR {
			return err
		}
	}
}

// Sacrifice puts dummy frames into the tap, past the gate: QEMU loses the
// first frame that it pulls from a queue before its devices' state is loaded.
// One frame does for one queue. With several, the kernel chooses the queue by
// the flow, so enough flows are sent that each queue that the guest has
// enabled gets one, except once in many thousand times. A guest that is handed
// one drops it: neither Ethernet nor IP address is its own.
func (t *Tap) Sacrifice() error {
	flows := 1
	if n := len(t.FDs()); n > 1 {
		flows = 16 * n
	}
	to := &unix.SockaddrLinklayer{Ifindex: t.ifindex}
	for flow := range flows {
		if err := sendFrame(t.host.ports.bypass, dummyFrame(uint16(flow)), to); err != nil {
			return fmt.Errorf("send a dummy frame into %s: %w", t.name, err)
		}
	}
	return nil
}

// dummyFrame is a UDP datagram to the discard port (RFC 863) between addresses
// reserved for documentation (RFC 5737) and locally administered MACs, after
// an empty virtio_net_hdr.
func dummyFrame(flow uint16) []byte {
	const ipLength, udpLength = 46, 26 // fills the smallest Ethernet frame
	frame := make([]byte, vnetHeader, vnetHeader+14+ipLength)
	frame = append(frame, 0x02, 'g', 'w', 0, 0, 2, 0x02, 'g', 'w', 0, 0, 1, 0x08, 0x00)
	ip := []byte{0x45, 0, 0, ipLength, 0, 0, 0x40, 0, 1, unix.IPPROTO_UDP, 0, 0,
		192, 0, 2, 1, 192, 0, 2, 2}
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	frame = append(frame, ip...)
	frame = binary.BigEndian.AppendUint16(frame, 49152+flow)
	frame = append(frame, 0, 9, 0, udpLength, 0, 0) // discard port, length, no checksum
	return frame[:cap(frame)]
}
