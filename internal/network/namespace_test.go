package network

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// visited is what the first thread's namespace is called before and after
// something was done in another one.
var visited struct {
	before, after string
	err           error
}

// TestMain begins on the process's first thread, which nothing else in a test
// can be sure of, and stays there until it first waits.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		asInit()
	}
	if os.Geteuid() == 0 {
		visit()
	}
	os.Exit(m.Run())
}

func visit() {
	runtime.LockOSThread()
	space, err := aside()
	runtime.UnlockOSThread()
	if err != nil {
		visited.err = err
		return
	}
	defer func() { _ = space.close() }()
	// With one processor what this goroutine starts and waits for runs on its thread.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	visited.before, _ = os.Readlink("/proc/self/ns/net")
	visited.err = space.do(func() error { return nil })
	visited.after, _ = os.Readlink("/proc/self/ns/net")
}

// aside makes a namespace on a thread that ends.
func aside() (space namespace, err error) {
	made := make(chan struct{})
	go func() {
		defer close(made)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			space, err = callersNamespace()
		}
	}()
	<-made
	return space, err
}

// What is done in a namespace leaves the first thread where it is: others take
// its namespace for the process's.
func TestFirstThreadStaysAtHome(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it enters a network namespace")
	}
	if visited.err != nil || visited.before == "" || visited.after != visited.before {
		t.Errorf("it was in %q and is in %q: %v", visited.before, visited.after, visited.err)
	}
}
