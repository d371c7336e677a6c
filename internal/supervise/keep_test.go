package supervise

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newKeeper gives a keeper and what its monitor keeps, to be looked at when the
// monitor's end of the connection is closed.
func newKeeper(t *testing.T) (*Keeper, kept, func()) {
	t.Helper()
	asks, asked, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := unixConn(asked)
	if err != nil {
		t.Fatal(err)
	}
	asked.Close()
	k, served := kept{}, make(chan struct{})
	go func() {
		defer close(served)
		k.serve(asks)
	}()
	t.Cleanup(func() {
		conn.Close()
		asks.Close()
		<-served
		k.dropAll()
	})
	return &Keeper{conn: conn, within: answerWithin}, k, func() { asks.Close(); <-served }
}

// open gives a descriptor, and what tells whether any copy of it is open.
func open(t *testing.T) (fd int, anyOpen func() bool) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if fd, err = unix.FcntlInt(w.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() { r.Close() })
	return fd, func() bool {
		polled := []unix.PollFd{{Fd: int32(r.Fd())}}
		if _, err := unix.Poll(polled, 0); err != nil {
			t.Error(err)
		}
		return polled[0].Revents&unix.POLLHUP == 0
	}
}

// keep has a new descriptor kept, and closes its own.
func keep(t *testing.T, k *Keeper, name string) (anyOpen func() bool) {
	t.Helper()
	fd, anyOpen := open(t)
	if err := k.Keep(name, fd); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	return anyOpen
}

func checkNames(t *testing.T, k *Keeper, want ...string) {
	t.Helper()
	if got, err := k.Names(); err != nil || !slices.Equal(got, want) {
		t.Errorf("kept are %q, %v, want %q", got, err, want)
	}
}

func TestKeeper(t *testing.T) {
	k, _, _ := newKeeper(t)
	checkNames(t, k)
	first, second, other := keep(t, k, "one"), keep(t, k, "one"), keep(t, k, "two")
	if first() || !second() || !other() {
		t.Errorf("open: what was replaced %v, what replaced it %v, another %v", first(), second(), other())
	}
	checkNames(t, k, "one", "two")
	fd, found, err := k.Kept("one")
	if err != nil || !found {
		t.Fatalf("found %v, %v", found, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("other programs would inherit it: flags %x, %v", flags, err)
	}
	if err := k.Drop("one"); err != nil || !second() {
		t.Errorf("the copy that was given is open: %v, after %v", second(), err)
	}
	unix.Close(fd)
	if second() {
		t.Error("what was dropped is open")
	}
	if _, found, err := k.Kept("one"); err != nil || found {
		t.Errorf("what was dropped is found: %v, %v", found, err)
	}
	if err := k.Drop("one"); err != nil {
		t.Errorf("dropped again: %v", err)
	}
	checkNames(t, k, "two")
}

func TestKeeperIsBounded(t *testing.T) {
	k, _, _ := newKeeper(t)
	fd, anyOpen := open(t)
	for _, name := range []string{"", strings.Repeat("x", nameMax+1), strings.Repeat("x", 1000), "a\nb"} {
		if err := k.Keep(name, fd); err == nil {
			t.Errorf("%.40q is a name", name)
		}
	}
	checkNames(t, k)
	var names []string
	for i := range keptMax {
		names = append(names, fmt.Sprintf("%0*d", nameMax, i))
		if err := k.Keep(names[i], fd); err != nil {
			t.Fatal(err)
		}
	}
	checkNames(t, k, names...)
	if err := k.Keep("one more", fd); err == nil {
		t.Error("more are kept than may be")
	}
	if err := k.Keep(names[0], fd); err != nil {
		t.Errorf("one is replaced: %v", err)
	}
	for _, name := range names {
		if err := k.Drop(name); err != nil {
			t.Fatal(err)
		}
	}
	unix.Close(fd)
	if anyOpen() {
		t.Error("a copy is open of what was dropped or refused")
	}
}

// A descriptor that belongs to no request, and one without what it is for, do nothing.
func TestKeeperRefuses(t *testing.T) {
	k, _, _ := newKeeper(t)
	fd, anyOpen := open(t)
	for _, what := range []byte{askGive, askDrop, askNames, '?'} {
		if _, _, err := k.ask(what, "one", fd); err == nil {
			t.Errorf("%q takes a descriptor", what)
		}
	}
	unix.Close(fd)
	if anyOpen() {
		t.Error("a copy is open of what was refused")
	}
	for _, what := range []byte{askKeep, '?'} {
		if _, _, err := k.ask(what, "one", -1); err == nil {
			t.Errorf("%q needs no descriptor", what)
		}
	}
	checkNames(t, k)
}

// A monitor that answers late is asked again, and late answers are taken for no others.
func TestKeeperOfALateMonitor(t *testing.T) {
	asks, asked, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := unixConn(asked)
	if err != nil {
		t.Fatal(err)
	}
	asked.Close()
	k, kept, served := &Keeper{conn: conn, within: time.Millisecond}, kept{}, make(chan struct{})
	fd, anyOpen := open(t)
	if err := k.Keep("one", fd); !errors.Is(err, errUnanswered) {
		t.Errorf("nobody has answered, and the error is %v", err)
	}
	unix.Close(fd)
	if _, found, err := k.Kept("one"); found || !errors.Is(err, errUnanswered) {
		t.Errorf("nobody has answered, and it is found: %v, %v", found, err)
	}
	go func() {
		defer close(served)
		kept.serve(asks)
	}()
	k.within = answerWithin
	checkNames(t, k, "one")
	if err := k.Drop("one"); err != nil || anyOpen() {
		t.Errorf("a copy is open: %v, after %v", anyOpen(), err)
	}
	conn.Close()
	<-served
	asks.Close()
}

// When the monitor has gone nobody answers, and what it keeps is there for its end.
func TestKeeperWithoutMonitor(t *testing.T) {
	k, kept, end := newKeeper(t)
	anyOpen := keep(t, k, "one")
	end()
	for range 2 {
		if _, err := k.Names(); err == nil {
			t.Error("nobody has answered")
		}
	}
	if !anyOpen() {
		t.Error("it is not kept for the next life")
	}
	kept.dropAll()
	if anyOpen() {
		t.Error("it is open after the monitor's end")
	}
}
