package qemu_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/qemu"
)

// A target that reads nothing any more, as one behind a link that is cut, holds the
// source's main loop up while that sends the rest. The cancel ends it all the same,
// and the guest runs on.
func TestCancelOfAStuckSource(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		source, target, address := guestPair(t, binary, bootsector.Filling())
		// The switch comes with all of the memory still to be sent.
		events := subscribe(t, source)
		send(t, source, qemu.Outgoing{Address: address, DowntimeLimit: 30 * time.Minute, BandwidthMax: 1 << 20})
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
		bound := within(t)
		for stuck := false; !stuck; { // QEMU answers until it comes to that
			soon, cancel := context.WithTimeout(bound, time.Second)
			_, err := source.Status(soon)
			if stuck = soon.Err() != nil; !stuck && err != nil || bound.Err() != nil {
				t.Fatalf("it does not get stuck: %v", err)
			}
			cancel()
		}
		if err := source.CancelMigration(within(t)); err != nil {
			t.Fatal(err)
		}
		resume(t, source)
	})
}
