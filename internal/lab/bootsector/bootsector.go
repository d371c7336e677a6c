// Package bootsector has the smallest guests: a few instructions in real mode,
// which SeaBIOS runs at 0000:7c00. They say '!' on the serial console when they
// begin.
package bootsector

import (
	"os"
	"path/filepath"
	"slices"
)

const (
	// diskSize is more than the firmware needs to find the sector, in bytes.
	diskSize = 1 << 20
	// markAt is where the sector ends, with the mark of one that can be booted.
	markAt = 510
)

var mark = []byte{0x55, 0xaa}

// hello is how each begins.
func hello() []byte {
	return []byte{
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xb0, '!', // mov al, '!'
		0xee, // out dx, al
	}
}

// Busy writes into one page for ever, so that each pass of a copy leaves
// something.
func Busy() []byte {
	return slices.Concat(hello(), []byte{
		0xff, 0x06, 0x00, 0x90, // inc word [0x9000]
		0xeb, 0xfa, // jmp to it
	})
}

// PoweringOff powers the machine off: S5 by the PM1a control register, which
// QEMU's firmware puts at port 0x604.
func PoweringOff() []byte {
	return slices.Concat(hello(), []byte{
		0xba, 0x04, 0x06, // mov dx, 0x604
		0xb8, 0x00, 0x20, // mov ax, SLP_EN
		0xef,             // out dx, ax
		0xf4, 0xeb, 0xfd, // hlt, for ever
	})
}

// WriteDisk writes a raw disk that a guest boots the code from.
func WriteDisk(dir string, code []byte) (path string, err error) {
	image := make([]byte, diskSize)
	copy(image, code)
	copy(image[markAt:], mark)
	path = filepath.Join(dir, "disk.raw")
	return path, os.WriteFile(path, image, 0o600)
}
