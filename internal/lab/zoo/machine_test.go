package zoo

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/load"
	"godwit.dev/godwit/internal/lab/probe"
	"godwit.dev/godwit/internal/lab/witness"
	"godwit.dev/godwit/internal/qmp"
)

const (
	mib = 1 << 20
	// pagesPerMiB is the number of pages of a MiB.
	pagesPerMiB = mib / witness.PageSize
)

// guestAddress is what QEMU's user network gives to the first guest.
var guestAddress = netip.MustParsePrefix("10.0.2.15/24")

// machine is a QEMU with a guest, in a namespace where the guest's control port is also
// one of the loopback's.
type machine struct {
	probe.Guest
	monitor *qmp.Client
	memory  []byte              // all of the guest's, as it is
	seen    []byte              // as it was
	reports chan witness.Report // what the guest says once a second
}

// boot starts a guest and waits until it works on its load.
func boot(t *testing.T, img image.Image, memoryMiB int, l witness.Load) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	data, err := lab.New(t.Context(), lab.Config{Hosts: []string{"host"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := data.Close(); err != nil {
			t.Error(err)
		}
	})
	memory, file := shared(t, memoryMiB*mib)
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	args := witness.Args{Ports: []witness.Port{{MAC: mac, Addresses: []netip.Prefix{guestAddress}}}, Load: l}
	socket := filepath.Join(data.Dir(), "qmp")
	cmd := data.Host("host").Command(t.Context(), "qemu-system-x86_64",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-machine", "pc,memory-backend=ram", "-accel", "tcg,tb-size=64", "-cpu", "qemu64", "-m", fmt.Sprint(memoryMiB),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,share=on,mem-path=/proc/self/fd/3,size=%dM", memoryMiB),
		"-kernel", img.Kernel, "-initrd", img.Initrd, "-append", args.CommandLine(),
		"-netdev", fmt.Sprintf("user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:%d-:%d", witness.ControlPort, witness.ControlPort),
		"-device", "virtio-net-pci,netdev=n,romfile=,mac="+mac.String(),
		"-qmp", "unix:"+socket+",server=on,wait=off")
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{file}
	console, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m := &machine{
		memory: memory, seen: make([]byte, len(memory)),
		Guest:   probe.Guest{Place: data.Host("host").Namespace, Addr: netip.MustParseAddr("127.0.0.1")},
		reports: make(chan witness.Report, 1),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.listen(bufio.NewScanner(console))
		cmd.Wait()
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	r := m.report(t)
	if r.Kind != witness.KindReady {
		t.Fatalf("the guest is not ready: %+v", r)
	}
	t.Logf("ready after %v, %v of them in the guest's init", time.Since(begun), time.Duration(r.Clock))
	if m.monitor, err = qmp.Dial(t.Context(), socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.monitor.Close() })
	return m
}

// shared gives memory for a guest, and the file that QEMU has it from.
func shared(t *testing.T, size int) ([]byte, *os.File) {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "guest")
	t.Cleanup(func() { file.Close() })
	if err := file.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	memory, err := unix.Mmap(fd, 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(memory) })
	return memory, file
}

// listen keeps the newest report for who wants one.
func (m *machine) listen(lines *bufio.Scanner) {
	defer close(m.reports)
	for lines.Scan() {
		var r witness.Report
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			continue // the kernel's
		}
		select {
		case <-m.reports:
		default:
		}
		m.reports <- r
	}
}

// report waits for what the guest says next.
func (m *machine) report(t *testing.T) witness.Report {
	t.Helper()
	select {
	case r, open := <-m.reports:
		if !open {
			t.Fatal("the guest has ended")
		}
		return r
	case <-t.Context().Done():
	case <-time.After(time.Minute):
	}
	t.Fatal("the guest says nothing")
	panic("unreachable")
}

// status asks for the guest's report of now.
func (m *machine) status(t *testing.T) witness.Report {
	t.Helper()
	r, err := m.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// give gives the guest a load.
func (m *machine) give(t *testing.T, l witness.Load) {
	t.Helper()
	if err := m.SetLoad(t.Context(), l); err != nil {
		t.Fatal(err)
	}
}

// await waits for a report of that time of the guest's clock, or later.
func (m *machine) await(t *testing.T, clock int64) witness.Report {
	t.Helper()
	for {
		if r := m.report(t); r.Clock >= clock {
			return r
		}
	}
}

// measured is what a guest did within one to three seconds.
type measured struct {
	perS    float64 // units of work, as it says, for each second of its own clock
	changed int     // pages of its memory, as seen from outside, by so many units:
	least   int
	most    int
	zeroed  int // of these, the ones that are zeros now
}

// measure watches a guest. It stands still while its memory is looked at.
func (m *machine) measure(t *testing.T) (did measured) {
	t.Helper()
	before := m.status(t)
	m.still(t, func() { copy(m.seen, m.memory) })
	first := m.status(t)
	m.await(t, first.Clock+int64(1500*time.Millisecond))
	last := m.status(t)
	m.still(t, func() {
		var zeros [witness.PageSize]byte
		for at := 0; at < len(m.memory); at += witness.PageSize {
			page := m.memory[at : at+witness.PageSize]
			if bytes.Equal(page, m.seen[at:at+witness.PageSize]) {
				continue
			}
			did.changed++
			if bytes.Equal(page, zeros[:]) {
				did.zeroed++
			}
		}
	})
	after := m.status(t)
	if after.Load.Error != "" {
		t.Fatalf("the load has ended: %s", after.Load.Error)
	}
	did.least, did.most = int(last.Load.Work-first.Load.Work), int(after.Load.Work-before.Load.Work)
	did.perS = float64(did.least) / time.Duration(last.Clock-first.Clock).Seconds()
	return did
}

// still runs f while the guest does not.
func (m *machine) still(t *testing.T, f func()) {
	t.Helper()
	if err := qmp.Stop(t.Context(), m.monitor); err != nil {
		t.Fatal(err)
	}
	f()
	if err := qmp.Cont(t.Context(), m.monitor); err != nil {
		t.Fatal(err)
	}
}

// different gives how many different pages of its set a load's next units are for.
func different(l witness.Load, units int) int {
	noise := witness.Noise(1)
	s := load.New(l, 0, &noise)
	pages := make(map[int]bool)
	for range units {
		pages[s.Next()] = true
	}
	return len(pages)
}
