package volume

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// withSync has the volume "v" of a store flushed by a call of the test's.
func withSync(t *testing.T, store *Store, sync func() error) *volume {
	t.Helper()
	v, err := store.find("v")
	if err != nil {
		t.Fatal(err)
	}
	before := v.data.sync
	v.data.sync = sync
	t.Cleanup(func() { v.data.sync, v.data.failed = before, false })
	return v
}

// The kernel tells one of two calls that run at the same time that writing has
// failed, and the other nothing: so none runs beside another.
func TestFlushesRunOneByOne(t *testing.T) {
	var running, beside atomic.Int32
	v := withSync(t, openStore(t), func() error {
		if running.Add(1) > 1 {
			beside.Add(1)
		}
		runtime.Gosched()
		running.Add(-1)
		return nil
	})
	var flushes sync.WaitGroup
	for range 8 {
		flushes.Go(func() {
			for range 100 {
				if err := v.data.flush(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	flushes.Wait()
	if n := beside.Load(); n > 0 {
		t.Errorf("%d ran beside another", n)
	}
}

// Whoever asks while a flush runs shares the next one, and the error of it.
func TestFlushesAreShared(t *testing.T) {
	const others = 10
	syncs, begun, release := 0, make(chan struct{}), make(chan error)
	v := withSync(t, openStore(t), func() error {
		if syncs++; syncs == 1 {
			close(begun)
			return <-release
		}
		return unix.ENOSPC
	})
	var flushes sync.WaitGroup
	flushes.Go(func() {
		if err := v.data.flush(); err != nil {
			t.Error(err)
		}
	})
	<-begun
	for range others {
		flushes.Go(func() {
			if v.data.flush() == nil {
				t.Error("a flush that failed is told to have succeeded")
			}
		})
	}
	for v.data.asked.Load() < 1+others {
		runtime.Gosched()
	}
	release <- nil
	flushes.Wait()
	if syncs != 2 {
		t.Errorf("%d, want 2", syncs)
	}
}

// While a volume that grows waits for the disk, it is written to and its lease
// changes. What it is told of the writes before counts as it does in a flush.
func TestGrowWaitsForTheDiskAlone(t *testing.T) {
	store, syncs := openStore(t), 0
	var v *volume
	v = withSync(t, store, func() error {
		syncs++
		if !v.gate.TryLock() {
			t.Error("the gate is shut")
			return nil
		}
		v.gate.Unlock()
		return unix.EIO
	})
	if _, err := store.Grow("v", 2*volumeSize); fleet.CodeOf(err) != fleet.Failed || syncs != 1 {
		t.Errorf("%v, after %d", err, syncs)
	}
	if err := v.data.flush(); err == nil {
		t.Error("a flush after one that failed is told to have succeeded")
	}
}
