package qemu_test

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"godwit.dev/godwit/internal/qemu"
)

// TestOnePass: with that limit QEMU stops the guest, which writes for ever, before
// it looks for what it has written. With any other one it looks while it runs.
func TestOnePass(t *testing.T) {
	eachQEMU(t, testOnePass)
}

func testOnePass(t *testing.T, binary string) {
	c := config(t, binary)
	c.Disks = []qemu.Disk{{Name: "root", Path: busyGuest(t), Format: "raw"}}
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
	events := subscribe(t, source)
	send(t, source, qemu.Outgoing{Address: netip.AddrPortFrom(loopback, port), DowntimeLimit: qemu.OnePass})
	timeout := time.After(patience)
	for {
		select {
		case event := <-events.Events():
			switch {
			case event.Kind == qemu.Stopped:
				return
			case event.Kind == qemu.PassBegun && event.Pass > 1:
				t.Fatal("a second pass began while the guest ran")
			}
		case <-timeout:
			t.Fatal("QEMU neither begins a second pass nor stops the guest")
		}
	}
}

// busyGuest writes a boot sector that says '!' on the serial console and then
// writes into one page for ever.
func busyGuest(t *testing.T) (path string) {
	t.Helper()
	image := make([]byte, 1<<20)
	copy(image, []byte{
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xb0, '!', // mov al, '!'
		0xee,                   // out dx, al
		0xff, 0x06, 0x00, 0x90, // inc word [0x9000]
		0xeb, 0xfa, // jmp to it
	})
	image[510], image[511] = 0x55, 0xaa
	path = filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// awaitHello waits for it in QEMU's log of the console, a file, which tells
// nobody that it grows.
func awaitHello(t *testing.T, log string) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		if text, err := os.ReadFile(log); err == nil && bytes.ContainsRune(text, '!') {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("the guest does not say hello")
		}
	}
}
