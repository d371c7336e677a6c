package network

import (
	"context"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	segmentBytes = 60000 // of payload, to be split by the guest's network card
	segmentSize  = 1400  // into pieces of this size

	// Of struct virtio_net_hdr (linux/virtio_net.h).
	needsChecksum = 1
	gsoTCPv4      = 1

	headerBytes = 14 + 20 + 20 // Ethernet, IPv4, TCP
)

// largeSegment is a TCP segment as one guest hands it to another on the same
// host: far above the MTU, not yet split, with a virtio_net_hdr that says how.
func largeSegment() []byte {
	frame := make([]byte, vnetHeader, vnetHeader+headerBytes+segmentBytes)
	frame[0], frame[1] = needsChecksum, gsoTCPv4
	binary.NativeEndian.PutUint16(frame[2:], headerBytes) // header length
	binary.NativeEndian.PutUint16(frame[4:], segmentSize)
	binary.NativeEndian.PutUint16(frame[6:], 14+20) // where the checksum begins
	binary.NativeEndian.PutUint16(frame[8:], 16)    // and is written, from there
	frame = append(append(frame, mac(1)...), mac(9)...)
	ip := []byte{0x08, 0x00, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0, 10, 5, 0, 9, 10, 5, 0, 1}
	binary.BigEndian.PutUint16(ip[4:], 20+20+segmentBytes)
	frame = append(frame, ip...)
	frame = append(frame, 0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0)
	for i := range segmentBytes {
		frame = append(frame, byte(i*7>>3))
	}
	return frame
}

// accept tells the kernel what the guest's network card can split.
func (g guest) accept(t *testing.T, offloads int) {
	t.Helper()
	must(t, unix.IoctlSetInt(g.fd, unix.TUNSETOFFLOAD, offloads))
}

// Large segments survive the redirect and the drain whole, where the guest's
// card can split them, and are split by the kernel where it cannot.
func TestLargeSegments(t *testing.T) {
	const whole = unix.TUN_F_CSUM | unix.TUN_F_TSO4
	for _, test := range []struct {
		name     string
		offloads int
		drained  bool
		frames   int
	}{
		{"redirected whole", whole, false, 1},
		{"drained whole", whole, true, 1},
		{"redirected and split", 0, false, (segmentBytes + segmentSize - 1) / segmentSize},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t, 2, underlay4)
			source := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: gate(Pass)})
			target := l.tap(t, 1, TapConfig{Name: "gwtb", MAC: mac(1), Gate: gate(TunnelOnly)})
			must(t, l.hosts[1].OpenTunnel(9, target))
			guestOf(source).accept(t, whole)
			guestOf(target).accept(t, test.offloads)
			if !test.drained {
				must(t, source.SetGate(redirectTo(l.underlay[1], 9)))
			}
			must(t, sendFrame(l.hosts[0].ports.inject, largeSegment(), &unix.SockaddrLinklayer{Ifindex: source.ifindex}))
			if test.drained {
				must(t, source.SetGate(redirectTo(l.underlay[1], 9)))
				frames, err := source.Drain(t.Context())
				must(t, err)
				if frames != 1 {
					t.Fatalf("drained %d frames, want one segment", frames)
				}
			}
			guestOf(target).expectStream(t, test.frames, largeSegment()[vnetHeader+headerBytes:])
		})
	}
}

// expectStream reads that many TCP frames, whose payloads make up want.
func (g guest) expectStream(t *testing.T, frames int, want []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var got []byte
	for i := range frames {
		frame := g.receive(ctx, t)
		if len(frame) <= headerBytes {
			t.Fatalf("frame %d of %d has %d bytes", i, frames, len(frame))
		}
		got = append(got, frame[headerBytes:]...)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d bytes of payload came, other than the %d sent", len(got), len(want))
	}
}
