package qemu_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"godwit.dev/godwit/internal/qemu"
)

// A target that reads nothing any more, as one behind a link that is cut, holds the
// source's main loop up while that sends the rest. The cancel ends it all the same,
// and the guest runs on.
func TestCancelOfAStuckSource(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		c := config(t, binary)
		c.Disks = []qemu.Disk{{Name: "root", Path: fullGuest(t), Format: "raw"}}
		source := start(t, c)
		resume(t, source)
		awaitHello(t, filepath.Join(c.Dir, "console.log"))
		incoming := config(t, binary)
		incoming.Disks, incoming.Incoming = c.Disks, true
		target := start(t, incoming)
		port, err := target.Listen(within(t), qemu.Incoming{Listen: loopback})
		if err != nil {
			t.Fatal(err)
		}
		// The switch comes with all of the memory still to be sent.
		events := subscribe(t, source)
		send(t, source, qemu.Outgoing{Address: netip.AddrPortFrom(loopback, port), DowntimeLimit: 30 * time.Minute, BandwidthMax: 1 << 20})
		if err := source.Stop(within(t)); err != nil {
			t.Fatal(err)
		}
		await(t, events, changed(qemu.StatusPreSwitchover))
		if err := syscall.Kill(target.PID(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Kill(target.PID(), syscall.SIGCONT) }()
		if err := source.SetBandwidth(within(t), 0); err != nil {
			t.Fatal(err)
		}
		asking, giveUp := context.WithCancel(within(t))
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			_ = source.ContinueSwitch(asking) // which may be held up as well
		}()
		await(t, events, changed(qemu.StatusDevice))
		giveUp()
		<-asked
		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := source.Status(soon); soon.Err() == nil {
			t.Fatalf("it is not stuck: %v", err)
		}
		if err := source.CancelMigration(within(t)); err != nil {
			t.Fatal(err)
		}
		resume(t, source)
	})
}

// fullGuest writes a boot sector that fills 32 MiB with what is no zero page, says
// '!' on the serial console, and halts.
func fullGuest(t *testing.T) (path string) {
	t.Helper()
	image := make([]byte, 1<<20)
	copy(image, []byte{
		0xfa,                   // cli
		0x31, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov ds, ax
		0x0f, 0x01, 0x16, 0x60, 0x7c, // lgdt [0x7c60]
		0x0f, 0x20, 0xc0, // mov eax, cr0
		0x66, 0x83, 0xc8, 0x01, // or eax, 1
		0x0f, 0x22, 0xc0, // mov cr0, eax
		0xea, 0x20, 0x7c, 0x08, 0x00, // jmp 8:0x7c20
	})
	copy(image[0x20:], []byte{
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
	copy(image[0x60:], []byte{0x17, 0x00, 0x68, 0x7c, 0x00, 0x00}) // limit and place of the table
	copy(image[0x68:], []byte{
		0, 0, 0, 0, 0, 0, 0, 0,
		0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0, // code, all of memory
		0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0, // data
	})
	image[510], image[511] = 0x55, 0xaa
	path = filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
