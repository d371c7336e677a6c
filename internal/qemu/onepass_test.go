package qemu_test

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/qemu"
)

// TestOnePass: with that limit QEMU stops the guest, which writes for ever, before
// it looks for what it has written. With any other one it looks while it runs.
func TestOnePass(t *testing.T) {
	eachQEMU(t, testOnePass)
}

func testOnePass(t *testing.T, binary string) {
	source, _, address := guestPair(t, binary, bootsector.Busy())
	events := subscribe(t, source)
	send(t, source, qemu.Outgoing{Address: address, DowntimeLimit: qemu.OnePass})
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

// guestPair gives a source whose guest has said hello, and a target that listens at
// the address.
func guestPair(t *testing.T, binary string, code []byte) (source, target *qemu.Instance, address netip.AddrPort) {
	t.Helper()
	disk, err := bootsector.WriteDisk(t.TempDir(), code)
	if err != nil {
		t.Fatal(err)
	}
	c := config(t, binary)
	c.Disks = []qemu.Disk{{Name: "root", Path: disk, Format: "raw"}}
	source = start(t, c)
	resume(t, source)
	awaitHello(t, filepath.Join(c.Dir, "console.log"))
	incoming := config(t, binary)
	incoming.Disks, incoming.Incoming = c.Disks, true
	target = start(t, incoming)
	port, err := target.Listen(within(t), qemu.Incoming{Listen: loopback})
	if err != nil {
		t.Fatal(err)
	}
	return source, target, netip.AddrPortFrom(loopback, port)
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
