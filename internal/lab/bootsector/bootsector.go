// Package bootsector has the smallest guests: a few instructions, which SeaBIOS
// runs in real mode at 0000:7c00. They say '!' on the serial console when they
// begin, or have done what they are for.
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

// Echoing says on the serial console what is typed there.
func Echoing() []byte {
	return slices.Concat(hello(), []byte{
		0xba, 0xfd, 0x03, // mov dx, 0x3fd
		0xec,       // in al, dx
		0xa8, 0x01, // test al, 1
		0x74, 0xfb, // jz to the in
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xec,       // in al, dx
		0xee,       // out dx, al
		0xeb, 0xf1, // jmp to the begin
	})
}

// Filling fills 32 MiB of memory with what is no zero page, in protected mode, says
// '!', and halts.
func Filling() []byte {
	const flat, table = 0x20, 0x60 // in the sector
	code := make([]byte, table+4*8)
	copy(code, []byte{
		0xfa,                   // cli
		0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
		0x0f, 0x01, 0x16, table, 0x7c, // lgdt [0x7c60]
		0x0f, 0x20, 0xc0, // mov eax, cr0
		0x66, 0x83, 0xc8, 0x01, // or eax, 1
		0x0f, 0x22, 0xc0, // mov cr0, eax
		0xea, flat, 0x7c, 0x08, 0x00, // jmp 8:0x7c20
	})
	copy(code[flat:], []byte{
		0x66, 0xb8, 0x10, 0x00, // mov ax, 16
		0x8e, 0xd8, 0x8e, 0xc0, // mov ds, ax; mov es, ax
		0xbf, 0x00, 0x00, 0x10, 0x00, // mov edi, 1 MiB
		0xb9, 0x00, 0x00, 0x80, 0x00, // mov ecx, 8 Mi of double words
		0x89, 0xf8, // mov eax, edi
		0xab,       // stosd
		0xe2, 0xfb, // loop to the mov
		0xba, 0xf8, 0x03, 0x00, 0x00, // mov edx, 0x3f8
		0xb0, '!', // mov al, '!'
		0xee,             // out dx, al
		0xf4, 0xeb, 0xfd, // hlt, for ever
	})
	copy(code[table:], []byte{
		0x17, 0x00, table + 8, 0x7c, 0x00, 0x00, 0, 0, // limit and place of what follows
		0, 0, 0, 0, 0, 0, 0, 0,
		0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0, // code, all of memory
		0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0, // data
	})
	return code
}

// WriteDisk writes a raw disk that a guest boots the code from.
func WriteDisk(dir string, code []byte) (path string, err error) {
	image := make([]byte, diskSize)
	copy(image, code)
	copy(image[markAt:], mark)
	path = filepath.Join(dir, "disk.raw")
	return path, os.WriteFile(path, image, 0o600)
}
