package lab

import (
	"context"
	"errors"
	"fmt"
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

// ownFromInside closes a lab with a process in it while this process's first
// thread, whose namespace is what /proc/self/ns/net says, is inside, and says
// which process that was.
func ownFromInside() error {
	ctx := context.Background()
	l, err := New(ctx, Config{Hosts: []string{"a"}})
	if err != nil {
		return err
	}
	out, err := l.Host("a").Command(ctx, "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	fmt.Print(string(out))
	if err := firstThreadInside(l.Host("a").Namespace); err != nil {
		return errors.Join(err, l.Close())
	}
	return l.Close()
}

// firstThreadInside moves the first thread into a namespace, for good.
func firstThreadInside(namespace *Namespace) error {
	const most = 1000 // threads until the first one must have been among them
	took := make(chan error)
	for range most {
		go func() {
			runtime.LockOSThread() // and never unlocked, so that the next one gets another
			if unix.Gettid() != os.Getpid() {
				took <- errEnded
				select {}
			}
			took <- unix.Setns(int(namespace.file.Fd()), unix.CLONE_NEWNET)
			select {}
		}()
		if err := <-took; !errors.Is(err, errEnded) {
			return err
		}
	}
	return errors.New("the first thread runs nothing")
}

// Where the owner's first thread happens to be must not spare whoever is there.
func TestCloseWhileFirstThreadIsInside(t *testing.T) {
	needRoot(t)
	owner := exec.CommandContext(t.Context(), os.Args[0])
	owner.Env = append(os.Environ(), ownerEnv+"="+ownerElsewhere)
	owner.Stderr = os.Stderr
	out, err := owner.Output()
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(out))
	if _, err := strconv.Atoi(pid); err != nil {
		t.Fatal(err)
	}
	if running(pid) {
		_ = exec.Command("kill", "-9", pid).Run()
		t.Errorf("process %s was left, and Close said nothing", pid)
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
