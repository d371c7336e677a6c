package witness

import (
	"encoding/binary"
	"errors"
)

// Ports of the guest's services.
const (
	UDPPort     = 7000
	TCPPort     = 7001
	ControlPort = 7002
)

// HeaderSize is the number of bytes of a packet before its filler.
const HeaderSize = 80

// MaxPacketSize is the largest payload the guest echoes, in bytes.
const MaxPacketSize = 9000

const (
	probeMagic = 0x47574f51 // "GWOQ"
	replyMagic = 0x47574f41 // "GWOA"
)

// Packet is the header of an echo packet, big endian on the wire. The client
// fills Flow, Sequence and Sent; the guest sends the whole packet back as a
// reply with the rest filled in. What follows the header comes
// back untouched.
type Packet struct {
	Reply    bool
	Flow     uint64 // one run of one client, chosen at random
	Sequence uint64 // from 1, by one
	Sent     int64  // the client's wall clock, ns since 1970
	Counter  uint64 // the guest's counter, from 1, by one for every packet
	Clock    int64  // the guest's monotonic clock, ns since its init began
	Boot     uint64 // random number of this boot of the guest
	Nonce    uint64 // drawn for this reply, see Nonces

	// The last record that the guest's disk has acknowledged; 0 without one.
	Written      uint64 // its sequence number
	WrittenNonce uint64
}

// ErrNotPacket says that the bytes are no echo packet.
var ErrNotPacket = errors.New("not an echo packet")

// Marshal writes the header to the start of b, which holds at least
// HeaderSize bytes.
func (p Packet) Marshal(b []byte) {
	magic := uint32(probeMagic)
	if p.Reply {
		magic = replyMagic
	}
	binary.BigEndian.PutUint32(b[0:], magic)
	binary.BigEndian.PutUint32(b[4:], 0)
	binary.BigEndian.PutUint64(b[8:], p.Flow)
	binary.BigEndian.PutUint64(b[16:], p.Sequence)
	binary.BigEndian.PutUint64(b[24:], uint64(p.Sent))
	binary.BigEndian.PutUint64(b[32:], p.Counter)
	binary.BigEndian.PutUint64(b[40:], uint64(p.Clock))
	binary.BigEndian.PutUint64(b[48:], p.Boot)
	binary.BigEndian.PutUint64(b[56:], p.Nonce)
	binary.BigEndian.PutUint64(b[64:], p.Written)
	binary.BigEndian.PutUint64(b[72:], p.WrittenNonce)
}

// ParsePacket reads the header at the start of b, or gives ErrNotPacket.
func ParsePacket(b []byte) (Packet, error) {
	if len(b) < HeaderSize {
		return Packet{}, ErrNotPacket
	}
	magic := binary.BigEndian.Uint32(b[0:])
	if magic != probeMagic && magic != replyMagic {
		return Packet{}, ErrNotPacket
	}
	return Packet{
		Reply:    magic == replyMagic,
		Flow:     binary.BigEndian.Uint64(b[8:]),
		Sequence: binary.BigEndian.Uint64(b[16:]),
		Sent:     int64(binary.BigEndian.Uint64(b[24:])),
		Counter:  binary.BigEndian.Uint64(b[32:]),
		Clock:    int64(binary.BigEndian.Uint64(b[40:])),
		Boot:     binary.BigEndian.Uint64(b[48:]),
		Nonce:    binary.BigEndian.Uint64(b[56:]),

		Written:      binary.BigEndian.Uint64(b[64:]),
		WrittenNonce: binary.BigEndian.Uint64(b[72:]),
	}, nil
}
