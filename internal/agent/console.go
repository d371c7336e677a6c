package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/wire"
)

const (
	// consoleEvery is how often a console that is followed is looked at: less than
	// people notice.
	consoleEvery = 20 * time.Millisecond
	// consolePiece is what one message has at most.
	consolePiece = 16 << 10
	// consoleWithin is for one message to be taken by who reads.
	consoleWithin = 10 * time.Second
	// typeWithin is for a guest to take what is typed.
	typeWithin = 5 * time.Second
	// keysIdle is how long the socket of a console is held after the last input.
	keysIdle = time.Minute
)

// consoleService gives servers the serial consoles of this host's instances. What
// an instance says is read from QEMU's log of it, so that any number may look,
// nobody holds the guest up, and nothing is missed by who comes later.
type consoleService struct{ agent *Agent }

func (s consoleService) Read(ctx context.Context, request *godwitv1.ReadConsoleRequest, stream *connect.ServerStream[godwitv1.ReadConsoleResponse]) error {
	m, err := s.agent.askedFor(ctx, "use console", request.GetVm(), request.GetEpoch(), request.GetUid())
	if err != nil {
		return err
	}
	log, err := os.Open(qemu.ConsoleLog(m.dir))
	if errors.Is(err, fs.ErrNotExist) {
		return s.agent.absent("read console", request.GetVm(), request.GetEpoch())
	}
	if err != nil {
		return err
	}
	defer log.Close()
	offset, err := startOf(log, request)
	if err != nil {
		return err
	}
	again := time.NewTicker(consoleEvery)
	defer again.Stop()
	if err := stream.Send(&godwitv1.ReadConsoleResponse{Offset: offset}); err != nil { // that it is open
		return err
	}
	for {
		last := !request.GetFollow() || m.silent()
		if offset, err = sendLog(ctx, log, offset, stream); err != nil || last {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// startOf gives the offset of the first byte that is wanted.
func startOf(log *os.File, request *godwitv1.ReadConsoleRequest) (uint64, error) {
	if request.Last == nil {
		return request.GetOffset(), nil
	}
	info, err := log.Stat()
	if err != nil {
		return 0, err
	}
	size := uint64(info.Size())
	return size - min(size, request.GetLast()), nil
}

// sendLog sends what there is from an offset on, and gives the offset after it.
func sendLog(ctx context.Context, log *os.File, offset uint64, stream *connect.ServerStream[godwitv1.ReadConsoleResponse]) (uint64, error) {
	piece := make([]byte, consolePiece)
	for {
		n, err := log.ReadAt(piece, int64(offset))
		if n > 0 {
			offset += uint64(n)
			_ = callerOf(ctx).deadlines.SetWriteDeadline(time.Now().Add(consoleWithin)) // there is one in any case
			if err := stream.Send(&godwitv1.ReadConsoleResponse{Output: piece[:n], Offset: offset}); err != nil {
				return offset, err
			}
		}
		if errors.Is(err, io.EOF) {
			return offset, nil
		}
		if err != nil {
			return offset, err
		}
	}
}

// silent tells whether the instance says nothing any more.
func (m *machine) silent() bool {
	if m.isGone() {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.instance != nil && m.instance.Ended()
}

func (s consoleService) Write(ctx context.Context, request *godwitv1.WriteConsoleRequest) (*godwitv1.WriteConsoleResponse, error) {
	m, err := s.agent.askedFor(ctx, "use console", request.GetVm(), request.GetEpoch(), request.GetUid())
	if err != nil {
		return nil, err
	}
	if n := len(request.GetInput()); n > wire.TypeMax {
		return nil, &fleet.Error{Code: fleet.Invalid, Op: "type", Subject: "vm " + request.GetVm(), Cause: fmt.Sprintf("%d bytes at once, at most %d", n, wire.TypeMax)}
	}
	return &godwitv1.WriteConsoleResponse{}, m.keys.write(ctx, m.life, qemu.ConsoleSocket(m.dir), request.GetInput())
}

// askedFor gives the instance that a server asks for.
func (a *Agent) askedFor(ctx context.Context, op, vm string, epoch uint64, uid string) (*machine, error) {
	if callerOf(ctx).Kind != pki.Server {
		return nil, &fleet.Error{Code: fleet.Denied, Op: op, Subject: "vm " + vm, Cause: "only servers may"}
	}
	m := a.find(machineKey{fleet.VMName(vm), fleet.Epoch(epoch)})
	if m == nil || !m.mayBeOf(vm, uid) {
		return nil, a.absent(op, vm, epoch)
	}
	return m, nil
}

func (a *Agent) absent(op, vm string, epoch uint64) error {
	return &fleet.Error{
		Code: fleet.NotFound, Op: op, Subject: "vm " + vm,
		Cause: fmt.Sprintf("%s has no instance of it at epoch %d", a.config.Name, epoch),
	}
}

// keyboard holds the connection to a console while something is typed.
type keyboard struct {
	mu   sync.Mutex
	conn net.Conn // nil without one
	idle *time.Timer
	stop func() bool // ends the wait for the end of the machine's life
}

// write types one input after the other.
func (k *keyboard) write(ctx, life context.Context, path string, input []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn == nil {
		if err := k.open(ctx, life, path); err != nil {
			return err
		}
	}
	k.idle.Reset(keysIdle)
	err := k.conn.SetWriteDeadline(time.Now().Add(typeWithin))
	if err == nil {
		_, err = k.conn.Write(input)
	}
	if err != nil {
		k.close()
		return &fleet.Error{
			Code: fleet.Unavailable, Op: "type", Subject: "console", Cause: "QEMU does not take it", Err: err,
			Hint: "if another program has opened " + path + ", end it",
		}
	}
	return nil
}

// open connects, and reads what comes: the log has it already.
func (k *keyboard) open(ctx, life context.Context, path string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return &fleet.Error{Code: fleet.Unavailable, Op: "type", Subject: "console", Cause: "QEMU does not answer there", Err: err}
	}
	k.conn = conn
	k.idle = time.AfterFunc(keysIdle, func() { k.closeIf(conn) })
	k.stop = context.AfterFunc(life, func() { k.closeIf(conn) })
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		k.closeIf(conn)
	}()
	return nil
}

// closeIf closes a connection that has ended or was not used for long.
func (k *keyboard) closeIf(conn net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn == conn {
		k.close()
	}
}

func (k *keyboard) close() {
	k.idle.Stop()
	k.stop()
	k.conn.Close()
	k.conn = nil
}
