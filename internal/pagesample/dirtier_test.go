package pagesample

import (
	"bufio"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The child process: a memory of known content, which changes as it is told.
const (
	asChild    = "PAGESAMPLE_CHILD"
	childPages = 16384
	quarter    = childPages / 4 // never touched; written with zeros; alike; random
	alike      = "what many pages have, and again "
)

// stamp is how many pages had been written at a time.
type stamp struct {
	At    int64 // Unix time in ns
	Pages int
}

// order is what the child is told, one a line; each is answered by a line.
type order struct {
	Write, Drop []int // from a page on so many are changed, or given back
	// Run: that many pages a second are written, one after the other round a set, until
	// the next order.
	Run struct{ Rate, Set int }
}

func TestMain(m *testing.M) {
	if os.Getenv(asChild) == "" {
		os.Exit(m.Run())
	}
	c := newDirtied(os.Getenv(asChild) == "shared")
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	must(out.Encode(uint64(uintptr(unsafe.Pointer(&c.memory[0])))))
	orders := make(chan order)
	go func() {
		for {
			var next order
			if in.Decode(&next) != nil {
				os.Exit(0)
			}
			orders <- next
		}
	}()
	for next := range orders {
		c.obey(next)
		must(out.Encode(true))
		if next.Run.Rate > 0 {
			c.run(next.Run.Rate, next.Run.Set, orders)
			must(out.Encode(c.stamps))
		}
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

type dirtied struct {
	memory []byte
	stamps []stamp
	writes uint64
}

func newDirtied(shared bool) *dirtied {
	kind := unix.MAP_PRIVATE
	if shared {
		kind = unix.MAP_SHARED
	}
	memory, err := unix.Mmap(-1, 0, childPages*pageSize, unix.PROT_READ|unix.PROT_WRITE, kind|unix.MAP_ANONYMOUS)
	must(err)
	must(unix.Madvise(memory, unix.MADV_NOHUGEPAGE))
	clear(memory[quarter*pageSize : 2*quarter*pageSize])
	for at := 2 * quarter * pageSize; at < 3*quarter*pageSize; at += len(alike) {
		copy(memory[at:], alike)
	}
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(memory[3*quarter*pageSize:])
	return &dirtied{memory: memory}
}

// change writes what the page has not had yet.
func (c *dirtied) change(page int) {
	c.writes++
	*(*uint64)(unsafe.Pointer(&c.memory[page*pageSize])) = c.writes
}

func (c *dirtied) obey(o order) {
	if len(o.Write) > 0 {
		for page := range o.Write[1] {
			c.change(o.Write[0] + page)
		}
	}
	if len(o.Drop) > 0 {
		must(unix.Madvise(c.memory[o.Drop[0]*pageSize:][:o.Drop[1]*pageSize], unix.MADV_DONTNEED))
	}
}

// run writes into the random quarter until there is another order, and notes a stamp
// before and after each share.
func (c *dirtied) run(rate, set int, orders <-chan order) {
	written, begun := 0, time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		c.stamps = append(c.stamps, stamp{time.Now().UnixNano(), written})
		for due := int(time.Since(begun).Seconds() * float64(rate)); written < due; written++ {
			c.change(3*quarter + written%set)
		}
		c.stamps = append(c.stamps, stamp{time.Now().UnixNano(), written})
		select {
		case <-orders:
			return
		case <-tick.C:
		}
	}
}

// child is the test's end.
type child struct {
	t    *testing.T
	pid  int
	base uint64
	in   *json.Encoder
	out  *json.Decoder
	end  func() // kills it and waits for its end
}

func startChild(t *testing.T, kind string) *child {
	t.Helper()
	command := exec.Command("/proc/self/exe")
	command.Env = append(os.Environ(), asChild+"="+kind)
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, pid: command.Process.Pid, in: json.NewEncoder(in), out: json.NewDecoder(bufio.NewReader(out))}
	c.end = func() {
		_ = command.Process.Kill() // it may have ended
		_ = command.Wait()
	}
	t.Cleanup(c.end)
	c.answer(&c.base)
	return c
}

func (c *child) answer(to any) {
	c.t.Helper()
	if err := c.out.Decode(to); err != nil {
		c.t.Fatal(err)
	}
}

func (c *child) tell(o order) {
	c.t.Helper()
	if err := c.in.Encode(o); err != nil {
		c.t.Fatal(err)
	}
	var done bool
	c.answer(&done)
}

// halt ends a run and gives its stamps.
func (c *child) halt() (stamps []stamp) {
	c.t.Helper()
	if err := c.in.Encode(order{}); err != nil {
		c.t.Fatal(err)
	}
	c.answer(&stamps)
	return stamps
}

func (c *child) open() *Memory {
	c.t.Helper()
	m, err := Open(c.pid, c.base, childPages*uint64(pageSize))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { m.Close() })
	return m
}

// resident counts the pages of a memory that are present.
func resident(t *testing.T, m *Memory) (count int) {
	t.Helper()
	for page := range m.pages {
		where, err := m.presence(page)
		if err != nil {
			t.Fatal(err)
		}
		if where == present {
			count++
		}
	}
	return count
}
