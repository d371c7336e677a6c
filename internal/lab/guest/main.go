// Command guest is /init of the lab's guest: the first and only process of a
// tiny Linux that is booted, moved and questioned by tests. It brings up the
// ports named on the kernel's command line, echoes packets and streams, works
// and writes to its disks as told, runs a program, and says once a second on the serial
// console how the world looks from inside. Package witness has the protocols.
//
// It never exits: whatever keeps it from starting is reported as a line of
// kind "fatal", and the machine is powered off.
package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/lab/pid1"
	"godwit.dev/godwit/internal/lab/witness"
)

// reportEvery is how often the guest reports on the serial console.
const reportEvery = time.Second

func main() {
	// A guest is small and much of its CPU time is emulated: collect late.
	debug.SetGCPercent(400)
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the init of a lab guest, not a command")
		os.Exit(1)
	}
	err := run(context.Background())
	fatal := witness.Report{Kind: witness.KindFatal, Error: err.Error()}
	if console, cerr := os.OpenFile("/dev/ttyS0", os.O_WRONLY|unix.O_NOCTTY, 0); cerr == nil {
		_ = json.NewEncoder(console).Encode(fatal)
		// The line must have left the UART before the power goes.
		_ = unix.IoctlSetInt(int(console.Fd()), unix.TCSBRK, 1)
	} else {
		fmt.Println("guest:", err)
	}
	pid1.PowerOff()
}

// run brings the guest up and reports until something it cannot do without
// fails.
func run(ctx context.Context) error {
	if err := pid1.Mount(); err != nil {
		return err
	}
	if err := pid1.LoadModules("/modules"); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	args, err := witness.ParseArgs(string(line))
	if err != nil {
		return err
	}
	console, err := os.OpenFile("/dev/ttyS0", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	g := newGuest()
	watchPowerButton()
	go g.pulse.run()
	if err := g.bringUp(ctx, args); err != nil {
		return err
	}
	over := make(chan error, 2)
	if len(args.Run) > 0 {
		go func() { over <- runProgram(ctx, args.Run) }()
	}
	go func() { over <- g.reportTo(console) }()
	return <-over
}

// guest is the state of all that runs in this machine.
type guest struct {
	boot   uint64
	start  time.Time
	ledger *witness.Ledger
	pulse  *pulse
	stream stream
	worker *worker

	mu    sync.Mutex    // of what follows
	disks []*diskWriter // none without a disk load
	ports []port
}

func newGuest() *guest {
	var seed [8]byte
	_, _ = rand.Read(seed[:]) // never fails, by its contract
	g := &guest{
		boot:   binary.BigEndian.Uint64(seed[:]) >> 11, // exact in every JSON reader
		start:  time.Now(),
		ledger: witness.NewLedger(),
		pulse:  &pulse{},
	}
	g.worker = newWorker(g.clock)
	return g
}

// clock is the guest's monotonic clock.
func (g *guest) clock() time.Duration { return time.Since(g.start) }

func (g *guest) bringUp(ctx context.Context, args witness.Args) error {
	for _, wanted := range args.Ports {
		if err := g.addPort(ctx, wanted); err != nil {
			return err
		}
	}
	if err := g.setDisks(args.Disk); err != nil {
		return err
	}
	go g.worker.run()
	return g.worker.set(args.Load)
}

// addPort brings a port up and serves it.
func (g *guest) addPort(ctx context.Context, wanted witness.Port) error {
	p, err := openPort(wanted)
	if err == nil {
		err = g.serve(ctx, p)
	}
	if err != nil {
		return fmt.Errorf("port %s: %w", wanted.MAC, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ports = append(g.ports, p)
	return nil
}

// setDisks ends the load on the disks, if there is one, and begins the wanted one on all
// that there are.
func (g *guest) setDisks(wanted witness.Disk) (err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, disk := range g.disks {
		disk.end()
	}
	if g.disks = nil; wanted.Rate == 0 {
		return nil
	}
	if g.disks, err = openDisks(wanted.Rate); err != nil {
		return err
	}
	for i, disk := range g.disks {
		acknowledged := func(witness.Record) {}
		if i == 0 {
			acknowledged = g.ledger.Wrote
		}
		go disk.run(g, acknowledged)
	}
	return nil
}

// handle answers one request of the control port.
func (g *guest) handle(r witness.Request) witness.Report {
	var err error
	switch r.Op {
	case witness.OpStatus:
	case witness.OpLoad:
		err = g.worker.set(r.Load)
	case witness.OpDisk:
		err = g.setDisks(r.Disk)
	case witness.OpPort:
		var wanted witness.Port
		if wanted, err = witness.ParsePort(r.Port); err == nil {
			err = g.addPort(context.Background(), wanted)
		}
	case witness.OpPowerOff:
		// The answer has a moment to leave; nobody waits for more of it.
		time.AfterFunc(100*time.Millisecond, pid1.PowerOff)
	default:
		err = fmt.Errorf("unknown op %s", strconv.Quote(r.Op))
	}
	if err != nil {
		return witness.Report{Kind: witness.KindFatal, Error: err.Error()}
	}
	return g.report(witness.KindReport)
}

func (g *guest) report(kind string) witness.Report {
	ticks, longest := g.pulse.read()
	r := witness.Report{
		Kind: kind, Boot: g.boot, Clock: int64(g.clock()),
		Ticks: ticks, LongestPause: int64(longest),
		Counter: g.ledger.Counter(), Flows: g.ledger.Flows(),
		TCPBytes: g.stream.bytes.Load(),
		Load:     g.worker.report(),
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.ports {
		r.Ports = append(r.Ports, p.report())
	}
	for _, disk := range g.disks {
		r.Disks = append(r.Disks, disk.report())
	}
	return r
}

// reportTo writes the ready line and then a report a second. A console that
// nobody reads blocks only this.
func (g *guest) reportTo(console io.Writer) error {
	lines := json.NewEncoder(console)
	kind := witness.KindReady
	for tick := time.NewTicker(reportEvery); ; <-tick.C {
		if err := lines.Encode(g.report(kind)); err != nil {
			return fmt.Errorf("serial console: %w", err)
		}
		kind = witness.KindReport
	}
}
