package witness

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"
)

// BlockSize is the size of a disk record in bytes, and its alignment.
const BlockSize = 4096

const recordMagic = 0x4757524543303031 // "GWREC001"

// Record is one block that the guest wrote to its disk. Record n lies in block
// n modulo the number of blocks of the disk.
type Record struct {
	Sequence uint64 // from 1, by one, within a boot
	Boot     uint64 // random number of the boot that wrote it
	Clock    int64  // the guest's monotonic clock at the write, ns
	Counter  uint64 // the guest's packet counter at the write
	Nonce    uint64 // drawn for this record, see Nonces
}

// ErrNotRecord says that a block holds no record, or a torn one.
var ErrNotRecord = errors.New("not a whole disk record")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Marshal fills block, of BlockSize bytes, with the record: its fields, a
// filler that depends on them, and a checksum over all of it, so that a block
// written by halves never passes for a record.
func (r Record) Marshal(block []byte) {
	binary.BigEndian.PutUint64(block[0:], recordMagic)
	binary.BigEndian.PutUint64(block[8:], r.Sequence)
	binary.BigEndian.PutUint64(block[16:], r.Boot)
	binary.BigEndian.PutUint64(block[24:], uint64(r.Clock))
	binary.BigEndian.PutUint64(block[32:], r.Counter)
	binary.BigEndian.PutUint64(block[40:], r.Nonce)
	noise := Noise(r.Boot ^ r.Sequence)
	noise.Fill(block[48 : BlockSize-8])
	binary.BigEndian.PutUint64(block[BlockSize-8:], uint64(crc32.Checksum(block[:BlockSize-8], castagnoli)))
}

// ParseRecord reads a block, or gives ErrNotRecord.
func ParseRecord(block []byte) (Record, error) {
	if len(block) != BlockSize || binary.BigEndian.Uint64(block) != recordMagic {
		return Record{}, ErrNotRecord
	}
	sum := crc32.Checksum(block[:BlockSize-8], castagnoli)
	if binary.BigEndian.Uint64(block[BlockSize-8:]) != uint64(sum) {
		return Record{}, ErrNotRecord
	}
	return Record{
		Sequence: binary.BigEndian.Uint64(block[8:]),
		Boot:     binary.BigEndian.Uint64(block[16:]),
		Clock:    int64(binary.BigEndian.Uint64(block[24:])),
		Counter:  binary.BigEndian.Uint64(block[32:]),
		Nonce:    binary.BigEndian.Uint64(block[40:]),
	}, nil
}

// Nonces draws numbers that no copy of the guest draws as well. Two copies that
// run from one state have the same memory, the kernel's random numbers
// included, but do the same thing at different nanoseconds: so the moment of
// every draw goes into all that follow. It is not safe for concurrent use.
type Nonces struct{ state Noise }

// Draw gives the nonce of something that happens now, on the guest's clock.
func (n *Nonces) Draw(now time.Duration) uint64 {
	n.state ^= Noise(now)
	n.state = Noise(n.state.Next())
	return uint64(n.state)
}

// Noise is a stream of incompressible bytes: the splitmix64 generator, whose
// few instructions an emulated CPU still runs at hundreds of MiB a second.
type Noise uint64

// Next gives the next 64 bits.
func (n *Noise) Next() uint64 {
	*n += 0x9e3779b97f4a7c15
	z := uint64(*n)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Fill fills b, whose length is a multiple of 8.
func (n *Noise) Fill(b []byte) {
	for ; len(b) >= 8; b = b[8:] {
		binary.LittleEndian.PutUint64(b, n.Next())
	}
}
