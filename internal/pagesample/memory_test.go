package pagesample

import (
	"bufio"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

func TestOpenRefuses(t *testing.T) {
	c, shared := startChild(t, "private"), startChild(t, "shared")
	size, page := childPages*uint64(pageSize), uint64(pageSize)
	for _, test := range []struct {
		what       string
		pid        int
		base, size uint64
		want       fleet.Code
	}{
		{"all of it", c.pid, c.base, size, ""},
		{"a part", c.pid, c.base + page, page, ""},
		{"no whole page", c.pid, c.base + 1, page, fleet.Unsupported},
		{"no size", c.pid, c.base, 0, fleet.Unsupported},
		{"round the end", c.pid, c.base, -page, fleet.Unsupported},
		{"nothing there", c.pid, page, page, fleet.Unsupported},
		{"more than there is", c.pid, c.base, 1 << 46, fleet.Unsupported},
		{"shared memory", shared.pid, shared.base, size, fleet.Unsupported},
		{"no process", 1 << 30, c.base, size, fleet.Unsupported},
	} {
		m, err := Open(test.pid, test.base, test.size)
		if err == nil {
			m.Close()
		}
		if got := fleet.CodeOf(err); err == nil && test.want != "" || err != nil && got != test.want {
			t.Errorf("%s: %v, want %q", test.what, err, test.want)
		}
	}
}

func TestCovered(t *testing.T) {
	const maps = `1000-2000 r-xp 00000000 fe:00 12    /usr/bin/x
2000-4000 rw-p 00000000 00:00 0
4000-5000 rw-p 00000000 00:00 0    [anon: name]
5000-6000 r--p 00000000 00:00 0
7000-8000 rw-p 00000000 00:00 0
8000-9000 rw-s 00000000 00:01 7    /memfd:x (deleted)
9000-a000 rw-p 00000000 fe:00 7    /some/file
`
	for _, test := range []struct {
		from, to uint64
		want     string
	}{
		{0x2000, 0x5000, ""}, {0x3000, 0x4000, ""}, {0x7000, 0x8000, ""},
		{0x1000, 0x3000, "private anonymous"}, {0x2000, 0x6000, "private anonymous"}, {0x7000, 0x9000, "private anonymous"},
		{0x9000, 0xa000, "private anonymous"}, {0x6000, 0x8000, "nothing is mapped at 0x6000"}, {0xa000, 0xb000, "not all"},
	} {
		err := covered(bufio.NewScanner(strings.NewReader(maps)), test.from, test.to)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%#x to %#x: %v, want %q", test.from, test.to, err, test.want)
		}
	}
}

// A program without the right is told so, and reads nothing.
func TestNoRight(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs a process that has rights which this one gives up: root")
	}
	c := startChild(t, "private")
	memory := c.open()
	errs := make(chan error, 2)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with its rights
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			errs <- err
			errs <- err
			return
		}
		_, err := Open(c.pid, c.base, childPages*uint64(pageSize))
		errs <- err
		_, err = Measure(t.Context(), memory, Plan{Span: SpanMin, CPUMax: time.Second})
		errs <- err
	}()
	for _, when := range []string{"to open", "to read"} {
		if err := <-errs; fleet.CodeOf(err) != fleet.Unsupported {
			t.Errorf("without the right %s: %v", when, err)
		}
	}
}

// A process that ends is no longer measured, and none that has its number.
func TestEnded(t *testing.T) {
	c := startChild(t, "private")
	memory := c.open()
	s := newSampler(memory, 1000)
	if err := s.look(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	c.end()
	if err := s.look(t.Context(), 1); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("after its end: %v", err)
	}
	if _, err := Open(c.pid, c.base, childPages*uint64(pageSize)); err == nil {
		t.Error("it can be opened after its end")
	}
}
