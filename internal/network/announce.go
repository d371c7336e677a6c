package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Ethernet types (IEEE 802 numbers).
const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeRARP = 0x8035
	typeIPv6 = 0x86dd
)

// Announce sends, as if from the guest, what tells the network where the guest is:
// a RARP request, as QEMU sends one after a migration, from which every switch on its
// way learns; and for each address that is known an unsolicited ARP request (RFC 5227,
// section 3) or neighbour advertisement (RFC 4861, section 7.2.6), for what snoops
// them. The gate must let the guest send.
func (t *Tap) Announce(addresses []netip.Addr) error {
	frames := [][]byte{rarp(t.mac)}
	for _, address := range addresses {
		if address.Is4() {
			frames = append(frames, gratuitousARP(t.mac, address))
		} else {
			frames = append(frames, unsolicitedNA(t.mac, address))
		}
	}
	t.fdMu.RLock()
	defer t.fdMu.RUnlock()
	for _, frame := range frames {
		if err := t.sendAsGuest(frame); err != nil {
			return fmt.Errorf("announce the guest of %s: %w", t.name, err)
		}
	}
	return nil
}

// sendAsGuest writes a frame to the first queue that the guest has not switched off.
// It must be called with fdMu held.
func (t *Tap) sendAsGuest(frame []byte) error {
	err := errors.New("it has no queue")
	for _, fd := range t.fds {
		var header int
		header, err = unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
		if err == nil {
			_, err = unix.Write(fd, append(make([]byte, header, header+len(frame)), frame...))
		}
		if !errors.Is(err, unix.EBADFD) {
			return err
		}
	}
	return err
}

func ethernet(to, from net.HardwareAddr, ethertype uint16) []byte {
	frame := append(append(make([]byte, 0, 128), to...), from...)
	return binary.BigEndian.AppendUint16(frame, ethertype)
}

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// padded fills a frame up to the least that Ethernet carries, without its checksum.
func padded(frame []byte) []byte {
	const least = 60
	return append(frame, make([]byte, max(least-len(frame), 0))...)
}

// arpPacket is one of ARP or RARP (RFC 826, RFC 903) for Ethernet and IPv4.
func arpPacket(frame []byte, operation uint16, sender net.HardwareAddr, senderIP netip.Addr, target net.HardwareAddr, targetIP netip.Addr) []byte {
	frame = append(frame, 0, 1)
	frame = binary.BigEndian.AppendUint16(frame, typeIPv4)
	frame = append(frame, 6, 4)
	frame = binary.BigEndian.AppendUint16(frame, operation)
	frame = append(append(frame, sender...), senderIP.AsSlice()...)
	return padded(append(append(frame, target...), targetIP.AsSlice()...))
}

func rarp(mac net.HardwareAddr) []byte {
	const requestReverse = 3
	none := netip.IPv4Unspecified()
	return arpPacket(ethernet(broadcast, mac, typeRARP), requestReverse, mac, none, mac, none)
}

func gratuitousARP(mac net.HardwareAddr, address netip.Addr) []byte {
	const request = 1
	return arpPacket(ethernet(broadcast, mac, typeARP), request, mac, address, make(net.HardwareAddr, 6), address)
}

func unsolicitedNA(mac net.HardwareAddr, address netip.Addr) []byte {
	const (
		neighbourAdvertisement = 136
		override               = 0x20
		targetLinkAddress      = 2
		length                 = 4 + 4 + 16 + 8
		hopLimit               = 255
	)
	all := netip.IPv6LinkLocalAllNodes()
	message := []byte{neighbourAdvertisement, 0, 0, 0, override, 0, 0, 0}
	message = append(message, address.AsSlice()...)
	message = append(append(message, targetLinkAddress, 1), mac...)
	binary.BigEndian.PutUint16(message[2:], checksumICMPv6(address, all, message))

	frame := ethernet(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, mac, typeIPv6)
	frame = append(frame, 0x60, 0, 0, 0, 0, length, unix.IPPROTO_ICMPV6, hopLimit)
	frame = append(append(frame, address.AsSlice()...), all.AsSlice()...)
	return append(frame, message...)
}

// checksumICMPv6 gives the checksum of a message (RFC 4443, section 2.3) in which its
// field is zero.
func checksumICMPv6(from, to netip.Addr, message []byte) uint16 {
	pseudo := append(append([]byte{}, from.AsSlice()...), to.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(message)))
	pseudo = append(append(pseudo, 0, 0, 0, unix.IPPROTO_ICMPV6), message...)
	return checksum(pseudo)
}

// checksum is the Internet checksum (RFC 1071) of a whole number of 16-bit words.
func checksum(words []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(words); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(words[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
