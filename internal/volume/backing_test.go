package volume

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
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
