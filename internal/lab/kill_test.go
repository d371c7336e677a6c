package lab

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leave starts a process in the host that outlives whoever started it, and
// gives its number. It is ended with the test, if not before.
func leave(t *testing.T, host *Host) (pid string) {
	t.Helper()
	out, err := host.Command(t.Context(), "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if running(pid) {
			_ = exec.Command("kill", "-9", pid).Run()
		}
	})
	return pid
}

// onFirstThread runs what on the process's first thread, whose namespace is
// what /proc/PID/ns/net says, and returns when what has said that it is ready.
// release ends it all.
func onFirstThread(t *testing.T, what func(ready func(), release <-chan struct{})) (release func()) {
	t.Helper()
	const most = 1000 // threads until the first one must have been among them
	ready, end := make(chan bool), make(chan struct{})
	ended := make(chan struct{}, most)
	started := 0
	stop := func() {
		close(end)
		for range started {
			<-ended
		}
	}
	for started < most {
		started++
		go func() {
			defer func() { ended <- struct{}{} }()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if unix.Gettid() != os.Getpid() {
				ready <- false
				<-end // so that the next one gets another thread
				return
			}
			what(func() { ready <- true }, end)
		}()
		if <-ready {
			return stop
		}
	}
	stop()
	t.Fatal("the first thread runs nothing")
	return nil
}

// Where the owner's first thread happens to be must not spare whoever is there.
func TestCloseWhileFirstThreadIsInside(t *testing.T) {
	l := newLab(t, "a")
	pid := leave(t, l.Host("a"))
	var failed error
	release := onFirstThread(t, func(ready func(), release <-chan struct{}) {
		failed = l.Host("a").Do(func() error {
			ready()
			<-release
			return nil
		})
	})
	err := l.Close()
	left := running(pid)
	release()
	if err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	if left {
		t.Errorf("process %s is left, and Close said nothing", pid)
	}
}

// A namespace whose name somebody has taken away is the lab's still.
func TestCloseWithoutTheName(t *testing.T) {
	l := newLab(t, "a")
	pid := leave(t, l.Host("a"))
	if err := deleteNamespace(l.Host("a").Name()); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if running(pid) {
		t.Errorf("process %s is left, and Close said nothing", pid)
	}
}

// Whatever keeps a process from being looked at is not its end.
func TestOnlyTheEndIsTheEnd(t *testing.T) {
	l := newLab(t, "a")
	inside, err := grasp([]string{l.Host("a").Name()})
	if err != nil {
		t.Fatal(err)
	}
	defer inside.letGo()
	pid, err := strconv.Atoi(leave(t, l.Host("a")))
	if err != nil {
		t.Fatal(err)
	}
	lowerDescriptorLimit(t, func() { _, err = inside.killIfInside(pid) })
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("without a descriptor left: %v", err)
	}
	if !running(strconv.Itoa(pid)) {
		t.Fatal("it was killed all the same")
	}
	// Nobody may look at the first process of some machines; it is a stranger.
	if fd, err := inside.killIfInside(1); fd >= 0 || err != nil {
		t.Errorf("the first process: %d, %v", fd, err)
	}
	fd, err := inside.killIfInside(pid)
	if err != nil || fd < 0 {
		t.Fatalf("one that is inside: %d, %v", fd, err)
	}
	if err := waitGone([]int{fd}, time.Now().Add(killTime)); err != nil {
		t.Fatal(err)
	}
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	if fd, err := inside.killIfInside(ended.Process.Pid); fd >= 0 || !errors.Is(err, errEnded) {
		t.Errorf("one that has ended: %d, %v", fd, err)
	}
}

// lowerDescriptorLimit calls what while the process can open nothing.
func lowerDescriptorLimit(t *testing.T, what func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	what()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
}
