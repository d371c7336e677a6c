package main

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"godwit.dev/godwit/internal/lab/witness"
)

var guestMAC = net.HardwareAddr{0x52, 0x54, 0, 0x90, 0, 1}

// udpFrame is an Ethernet frame with UDP over IPv4.
func udpFrame(sender net.HardwareAddr, from netip.Addr, port uint16, payload []byte) []byte {
	frame := make([]byte, ethernetSize+ipv4Size+udpSize, ethernetSize+ipv4Size+udpSize+len(payload))
	copy(frame[6:], sender)
	frame[12], frame[13] = 0x08, 0x00
	frame[ethernetSize], frame[ethernetSize+9] = 0x45, 17
	copy(frame[ethernetSize+12:], from.AsSlice())
	binary.BigEndian.PutUint16(frame[ethernetSize+ipv4Size+2:], port)
	return append(frame, payload...)
}

func TestParseFrame(t *testing.T) {
	payload := make([]byte, witness.HeaderSize)
	reply := witness.Packet{Reply: true, Flow: 1, Sequence: 2, Counter: 3, Nonce: 4, Written: 5, WrittenNonce: 6}
	reply.Marshal(payload)
	inner := udpFrame(guestMAC, netip.MustParseAddr("10.20.0.10"), 9, payload)
	tunnel := func(port uint16, inner []byte) []byte {
		return udpFrame(net.HardwareAddr{2, 0, 0, 0, 0, 1}, one, port, append(make([]byte, vxlanSize), inner...))
	}
	got, ok := parseFrame(tunnel(vxlanPort, inner), guestMAC)
	if !ok || got.host != one || got.reply == nil || *got.reply != reply {
		t.Errorf("a reply of the guest: %v %+v", ok, got)
	}
	announcement := append(append(make([]byte, 6), guestMAC...), 0x80, 0x35)
	if got, ok := parseFrame(tunnel(vxlanPort, announcement), guestMAC); !ok || got.host != one || got.reply != nil {
		t.Errorf("another frame of the guest: %v %+v", ok, got)
	}
	stranger := udpFrame(net.HardwareAddr{2, 0, 0, 0, 0, 9}, one, 9, payload)
	for name, frame := range map[string][]byte{
		"a stranger's frame": tunnel(vxlanPort, stranger),
		"another port":       tunnel(vxlanPort+2, inner),
		"no tunnel":          inner,
		"half a frame":       tunnel(vxlanPort, inner)[:innerAt+10],
		"nothing":            nil,
	} {
		if got, ok := parseFrame(frame, guestMAC); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
