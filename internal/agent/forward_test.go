package agent

import (
	"encoding/binary"
	"errors"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/network"
)

// etherTest is for experiments on one site (IEEE 802).
const etherTest = 0x88b5

const frameSize = 60 // bytes, the least

// testFrame is a frame to the test's guest with a number.
func testFrame(t *testing.T, number int) []byte {
	t.Helper()
	guest, err := net.ParseMAC(testMAC)
	if err != nil {
		t.Fatal(err)
	}
	frame := append(slices.Clone(guest), 0x02, 0, 0, 0, 0, 1, etherTest>>8, etherTest&0xff)
	frame = binary.BigEndian.AppendUint64(frame, uint64(number))
	return append(frame, make([]byte, frameSize-len(frame))...)
}

// sender sends frames to the guest, one each millisecond, as another VM of a host does.
type sender struct {
	sent  atomic.Int64
	stop  chan struct{}
	ended chan struct{}
}

func (h *testHost) startSender(from *lab.Namespace) *sender {
	h.t.Helper()
	out, err := from.OpenPacket("eth0", etherTest)
	if err != nil {
		h.t.Fatal(err)
	}
	frame := testFrame(h.t, 0)
	s := &sender{stop: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		defer out.Close()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-s.stop:
				return
			}
			binary.BigEndian.PutUint64(frame[14:], uint64(s.sent.Load()))
			if _, err := out.Write(frame); err != nil {
				h.t.Errorf("send: %v", err)
				return
			}
			s.sent.Add(1)
		}
	}()
	h.t.Cleanup(func() { s.end() })
	return s
}

// end gives how many were sent.
func (s *sender) end() int {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	<-s.ended
	return int(s.sent.Load())
}

// receiver counts the frames of a sender that a host's tap lets to its guest.
type receiver struct {
	mu   sync.Mutex
	seen map[int]int // times, by number
}

func (h *testHost) startReceiver(tap string) *receiver {
	h.t.Helper()
	in, err := h.space.OpenPacket(tap, unix.ETH_P_ALL) // what goes out by a device has no other type
	if err != nil {
		h.t.Fatal(err)
	}
	r, ended := &receiver{seen: map[int]int{}}, make(chan struct{})
	go func() {
		defer close(ended)
		frame := make([]byte, 2048)
		for {
			n, err := in.Read(frame)
			if err != nil { // closed
				return
			}
			if n == frameSize && binary.BigEndian.Uint16(frame[12:]) == etherTest {
				r.mu.Lock()
				r.seen[int(binary.BigEndian.Uint64(frame[14:]))]++
				r.mu.Unlock()
			}
		}
	}()
	h.t.Cleanup(func() { in.Close(); <-ended })
	return r
}

func (r *receiver) has(number int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen[number] > 0
}

// check demands that each frame has come, once.
func (r *receiver) check(t *testing.T, sent int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	twice := 0
	for _, times := range r.seen {
		twice += times - 1
	}
	if lost := sent - len(r.seen); lost != 0 || twice != 0 {
		t.Errorf("of %d frames %d are lost, and %d came twice", sent, lost, twice)
	}
}

// fakeKeeper keeps descriptors, as a monitor does.
type fakeKeeper struct {
	t    *testing.T
	mu   sync.Mutex
	kept map[string]int
}

func newFakeKeeper(t *testing.T) *fakeKeeper {
	k := &fakeKeeper{t: t, kept: map[string]int{}}
	t.Cleanup(func() {
		for name := range k.kept {
			t.Errorf("%s is kept after the end", name)
			_ = k.Drop(name)
		}
	})
	return k
}

func copied(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

func (k *fakeKeeper) Keep(name string, fd int) error {
	fd, err := copied(fd)
	if err != nil {
		return err
	}
	err = k.Drop(name)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept[name] = fd
	return err
}

func (k *fakeKeeper) Kept(name string) (fd int, found bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if fd, found = k.kept[name]; found {
		fd, err = copied(fd)
	}
	return fd, found, err
}

func (k *fakeKeeper) Drop(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	fd, found := k.kept[name]
	if !found {
		return nil
	}
	delete(k.kept, name)
	return unix.Close(fd)
}

func (k *fakeKeeper) Names() ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.kept)), nil
}

// retiredMove gives a move that is committed, and whose source has ended and forwards.
func retiredMove(f *testFleet, hosts []*testHost) *move {
	f.t.Helper()
	m := f.newMove(hosts, inOverlay())
	m.source.apply(1, blue(m.target, ownedBy(m.source)))
	m.prepare()
	run := m.runCommand()
	m.grant(run)
	start := m.copyCommand(0)
	m.source.sendCommand(start)
	m.target.awaitReport("running target", answers(run))
	m.source.awaitReport("measurement", answers(start))
	c := m.command()
	c.Op = &godwitv1.Command_RetireSource{RetireSource: &godwitv1.RetireSource{Vm: testVM}}
	if answer := m.source.do(c); answer.GetSourceRetired() == nil {
		f.t.Fatalf("retire: %v", answer)
	}
	return m
}

// While a source forwards, its agent ends, twice: what the host's own VMs send to the
// VM that has left arrives all the same.
func TestForwardingOutlivesTheAgent(t *testing.T) {
	f, hosts := newFleet(t, "h1", "h2")
	hosts[0].stop()
	hosts[0].keeps = newFakeKeeper(t)
	hosts[0].start()
	m := retiredMove(f, hosts)
	other, err := f.lab.AddClient("client", lab.Port{Host: m.source.name, Device: "lan0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}})
	if err != nil {
		t.Fatal(err)
	}
	beside := blue(m.target, ownedBy(m.target))
	beside.Endpoints = []*godwitv1.Endpoint{{Name: "lan", Host: m.source.name, Device: "lan0"}}
	m.source.apply(2, beside)
	m.source.checkWay("forwarding", testMAC, m.source.taps()[0].Name, "")
	there := m.target.startReceiver(m.target.taps()[0].Name)
	frames := m.source.startSender(other)
	for range 2 {
		waitFor(t, "a frame", func() bool { return there.has(int(frames.sent.Load()) - 1) })
		m.source.stop()
		without := int(frames.sent.Load()) + 1500 // the kernel looks at carriers once a second
		waitFor(t, "frames while there is no agent", func() bool { return int(frames.sent.Load()) > without })
		m.source.start()
	}
	m.source.checkGates("after its next agent", network.Redirect)
	sent := frames.end()
	waitFor(t, "the last frame", func() bool { return there.has(sent - 1) })
	there.check(t, sent)
	m.settle()
}

// What was kept for an agent that has removed the tap, and ended before it could say
// so, is not kept for ever; without a keeper a tap is opened anew.
func TestKeptTaps(t *testing.T) {
	f, hosts := newFleet(t, "h1", "h2")
	m := retiredMove(f, hosts)
	keeper := newFakeKeeper(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := errors.Join(keeper.Keep("gwt0", int(w.Fd())), w.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first opens the tap anew and has it kept, the second is given it
		m.source.stop()
		m.source.keeps = keeper
		m.source.start()
		taps := m.source.taps()
		names, _ := keeper.Names()
		if len(taps) != 1 || !taps[0].Open || !slices.Equal(names, []string{taps[0].Name}) {
			t.Errorf("taps are %+v, kept are %v", taps, names)
		}
	}
	m.settle()
}
