package volume

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
)

// A lease file has two slots, of which each save writes the older one, in
// place: a crash in the middle leaves the other. Its blocks are there since the
// file was made, so that a save waits for the disk once, and for no journal of
// the file system. That wait is part of a migration's blackout.
//
//	0   magic
//	8   sequence number, big-endian
//	16  length of the lease as JSON, big-endian
//	20  CRC-32 (Castagnoli) of the bytes before and of the JSON
//	24  the JSON
const (
	slotSize   = 4096
	slotHeader = 24
	slotMagic  = "GWLEASE1"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeSlot gives a whole slot.
func encodeSlot(sequence uint64, lease Lease) ([]byte, error) {
	text, err := json.Marshal(lease)
	if err != nil {
		return nil, err
	}
	if len(text) > slotSize-slotHeader {
		return nil, fmt.Errorf("the lease takes %d bytes, more than a slot has", len(text))
	}
	slot := make([]byte, slotSize)
	copy(slot, slotMagic)
	binary.BigEndian.PutUint64(slot[8:], sequence)
	binary.BigEndian.PutUint32(slot[16:], uint32(len(text)))
	copy(slot[slotHeader:], text)
	binary.BigEndian.PutUint32(slot[20:], slotSum(slot, len(text)))
	return slot, nil
}

func slotSum(slot []byte, length int) uint32 {
	sum := crc32.Checksum(slot[:20], castagnoli)
	return crc32.Update(sum, castagnoli, slot[slotHeader:slotHeader+length])
}

// decodeSlot reads what encodeSlot wrote; ok is false for anything else.
func decodeSlot(slot []byte) (sequence uint64, lease Lease, ok bool) {
	if len(slot) < slotHeader || string(slot[:8]) != slotMagic {
		return 0, lease, false
	}
	length := binary.BigEndian.Uint32(slot[16:])
	if int64(length) > int64(len(slot)-slotHeader) || binary.BigEndian.Uint32(slot[20:]) != slotSum(slot, int(length)) {
		return 0, lease, false
	}
	err := json.Unmarshal(slot[slotHeader:slotHeader+int(length)], &lease)
	return binary.BigEndian.Uint64(slot[8:]), lease, err == nil
}

// leaseFile is the durable form of a lease.
type leaseFile struct {
	file     *os.File
	sequence uint64 // of the lease that was saved last
}

// createLeaseFile makes the file of a volume that nobody has used.
func createLeaseFile(path string) error {
	slot, err := encodeSlot(1, Lease{})
	if err != nil {
		return err
	}
	return durable.WriteFile(path, append(make([]byte, slotSize), slot...), fileMode)
}

// openLeaseFile reads the newer of the two slots. Without a valid one the file
// is refused: who may write must not be guessed. What was read is saved again,
// since the process before may have ended between the write and the sync of it,
// and what repeats the same change is answered without another save.
func openLeaseFile(path string) (*leaseFile, Lease, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, Lease{}, err
	}
	content := make([]byte, 2*slotSize)
	if _, err := file.ReadAt(content, 0); err != nil {
		return nil, Lease{}, errors.Join(fmt.Errorf("read %s: %w", path, err), file.Close())
	}
	newest, lease := uint64(0), Lease{}
	for slot := range 2 {
		sequence, found, ok := decodeSlot(content[slot*slotSize : (slot+1)*slotSize])
		if ok && sequence > newest {
			newest, lease = sequence, found
		}
	}
	if newest == 0 {
		return nil, Lease{}, errors.Join(&fleet.Error{
			Code: fleet.Failed, Op: "read lease", Subject: path, Cause: "neither of its two slots is valid",
			Hint: "bring the file back from a backup that is not older than the volume's last migration",
		}, file.Close())
	}
	f := &leaseFile{file: file, sequence: newest}
	if err := f.save(lease); err != nil {
		return nil, Lease{}, errors.Join(err, file.Close())
	}
	return f, lease, nil
}

// save makes a lease durable. After an error the old one is still what counts
// in this process; the next save writes the same slot again.
func (f *leaseFile) save(lease Lease) error {
	sequence := f.sequence + 1
	slot, err := encodeSlot(sequence, lease)
	if err != nil {
		return err
	}
	if _, err := f.file.WriteAt(slot, int64(sequence%2)*slotSize); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(f.file.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", f.file.Name(), err)
	}
	f.sequence = sequence
	return nil
}
