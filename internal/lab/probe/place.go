package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"godwit.dev/godwit/internal/lab/witness"
)

// Place is where sockets are made: sockets that fn makes are in that network.
// A lab's namespace is one.
type Place interface {
	Do(fn func() error) error
}

// Here is the network that the process is in.
type Here struct{}

// Do runs fn.
func (Here) Do(fn func() error) error { return fn() }

const (
	// guestTime bounds one question to a guest's control port.
	guestTime = 10 * time.Second
	// loadTime bounds the start of a load.
	loadTime = 2 * time.Minute
)

// Guest asks a guest for its own view.
type Guest struct {
	Place Place
	Addr  netip.Addr
}

// Status gives the guest's report of now.
func (g Guest) Status(ctx context.Context) (witness.Report, error) {
	return g.ask(ctx, witness.Request{Op: witness.OpStatus})
}

// SetLoad has the guest do this work from now on. It returns when the guest has begun:
// that takes as long as the set takes to be filled.
func (g Guest) SetLoad(ctx context.Context, load witness.Load) error {
	_, err := g.askWithin(ctx, loadTime, witness.Request{Op: witness.OpLoad, Load: load})
	return err
}

// SetDisk has the guest write to its disks like this from now on.
func (g Guest) SetDisk(ctx context.Context, load witness.Disk) error {
	_, err := g.ask(ctx, witness.Request{Op: witness.OpDisk, Disk: load})
	return err
}

// AddPort has the guest bring a port up that it has got.
func (g Guest) AddPort(ctx context.Context, port witness.Port) error {
	_, err := g.ask(ctx, witness.Request{Op: witness.OpPort, Port: port.String()})
	return err
}

// PowerOff has the guest power off; it does not wait for that.
func (g Guest) PowerOff(ctx context.Context) error {
	_, err := g.ask(ctx, witness.Request{Op: witness.OpPowerOff})
	return err
}

func (g Guest) ask(ctx context.Context, request witness.Request) (witness.Report, error) {
	return g.askWithin(ctx, guestTime, request)
}

func (g Guest) askWithin(ctx context.Context, within time.Duration, request witness.Request) (witness.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := dial(ctx, g.Place, netip.AddrPortFrom(g.Addr, witness.ControlPort))
	if err != nil {
		return witness.Report{}, fmt.Errorf("guest %s: %w", g.Addr, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var report witness.Report
	err = json.NewEncoder(conn).Encode(request)
	if err == nil {
		err = json.NewDecoder(conn).Decode(&report)
	}
	if err != nil {
		return witness.Report{}, fmt.Errorf("guest %s: %s: %w", g.Addr, request.Op, errors.Join(ctx.Err(), err))
	}
	if report.Kind == witness.KindFatal {
		return report, fmt.Errorf("guest %s: %s: refused: %s", g.Addr, request.Op, report.Error)
	}
	return report, nil
}

func dial(ctx context.Context, place Place, to netip.AddrPort) (conn net.Conn, err error) {
	err = place.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(to.Addr().String(), strconv.Itoa(int(to.Port()))))
		return err
	})
	return conn, err
}

// withPort puts in the guest's port where the target has none.
func withPort(target netip.AddrPort, port uint16) netip.AddrPort {
	if target.Port() == 0 {
		return netip.AddrPortFrom(target.Addr(), port)
	}
	return target
}
