package volume

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// wire is a client's connection below TLS.
//
// From wait on, a thread of its own waits in the kernel for what the client sends,
// and is woken by that alone. The runtime's poller, which all connections share,
// takes one system call more for each request, and its clients wait for their turn.
type wire struct {
	net.Conn
	mu     sync.Mutex
	closed bool
	file   *os.File // since wait
	raw    syscall.RawConn
	in     scattered
	soon   bool // what in is for is being sent by a client that is busy
	out    scattered
}

// scattered is what one system call reads to or writes from, and what came of it.
// It is kept, so that a call leaves no garbage.
type scattered struct {
	parts [][]byte
	call  func(fd uintptr) bool
	n     int
	err   error
}

func newWire(conn net.Conn) *wire {
	w := &wire{Conn: conn}
	w.in.call = func(fd uintptr) bool {
		if w.soon {
			if w.in.n, w.in.err = readSoon(int(fd), w.in.parts); w.in.err != unix.EAGAIN {
				return true
			}
		}
		w.in.err = again(func() (err error) { w.in.n, err = unix.Readv(int(fd), w.in.parts); return err })
		return true
	}
	w.out.call = func(fd uintptr) bool {
		w.out.err = again(func() (err error) {
			w.out.n, err = unix.SendmsgBuffers(int(fd), w.out.parts, nil, nil, unix.MSG_NOSIGNAL)
			return err
		})
		return true
	}
	return w
}

// looks is how often data that a client is sending are looked for before the thread
// sleeps for them: it takes some microseconds, to sleep and be woken several times
// that.
const looks = 32

// readSoon reads what comes while other threads are let run, if any; EAGAIN when
// nothing does.
func readSoon(fd int, parts [][]byte) (n int, err error) {
	for range looks {
		err = again(func() (err error) {
			n, _, _, _, err = unix.RecvmsgBuffers(fd, parts, nil, unix.MSG_DONTWAIT)
			return err
		})
		if err != unix.EAGAIN {
			return n, err
		}
		_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
	return 0, unix.EAGAIN
}

// wait takes the connection away from the poller. Nobody reads or writes
// meanwhile. What has no descriptor stays as it is.
func (w *wire) wait() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	source, ok := w.Conn.(syscall.Conn)
	if w.closed || !ok {
		return nil
	}
	conn, err := source.SyscallConn()
	if err != nil {
		return err
	}
	own, failed := -1, error(nil)
	if err := conn.Control(func(fd uintptr) { own, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	if err := unix.SetNonblock(own, false); err != nil {
		_ = unix.Close(own)
		return err
	}
	w.file = os.NewFile(uintptr(own), "client")
	w.raw, err = w.file.SyscallConn()
	_ = w.Conn.Close() // of two descriptors one, the poller's
	return err
}

// Close ends the connection, also for who waits in it.
func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.file == nil {
		return w.Conn.Close()
	}
	// Closing alone would wake nobody.
	_ = w.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	return w.file.Close()
}

func (w *wire) Read(p []byte) (int, error) {
	if w.file == nil {
		return w.Conn.Read(p)
	}
	return w.file.Read(p)
}

// readTo reads at least one byte, to the first part and what is more to the next.
// A client that sends one request after the other will send them soon.
func (w *wire) readTo(soon bool, parts ...[]byte) (int, error) {
	if w.file == nil {
		return w.Conn.Read(parts[0])
	}
	w.in.parts, w.soon = append(w.in.parts[:0], parts...), soon
	if err := w.raw.Read(w.in.call); err != nil {
		return 0, err
	}
	return w.in.n, w.in.err
}

func (w *wire) Write(p []byte) (int, error) {
	if w.file == nil {
		return w.Conn.Write(p)
	}
	return w.file.Write(p)
}

// writeFrom writes all parts, and takes the list apart.
func (w *wire) writeFrom(parts [][]byte) error {
	if w.file == nil {
		all := net.Buffers(parts)
		_, err := all.WriteTo(w.Conn)
		return err
	}
	for len(parts) > 0 {
		w.out.parts = parts[:min(len(parts), partsMax)]
		if err := w.raw.Write(w.out.call); err != nil {
			return err
		}
		if w.out.err != nil {
			return w.out.err
		}
		parts = after(parts, w.out.n)
	}
	return nil
}

// sendFile sends a range of a file.
func (w *wire) sendFile(file int, offset int64, length int) error {
	var failed error
	err := w.raw.Write(func(fd uintptr) bool {
		for length > 0 && failed == nil {
			failed = again(func() error {
				n, err := unix.Sendfile(int(fd), file, &offset, length)
				if length -= n; n == 0 && err == nil {
					err = io.ErrUnexpectedEOF // the file has been cut
				}
				return err
			})
		}
		return true
	})
	return errors.Join(err, failed)
}

// partsMax is the kernel's limit.
const partsMax = 1024

// after gives what is left of a list when so many bytes are done.
func after(parts [][]byte, n int) [][]byte {
	for len(parts) > 0 && n >= len(parts[0]) {
		n -= len(parts[0])
		parts = parts[1:]
	}
	if n > 0 {
		parts[0] = parts[0][n:]
	}
	return parts
}

// SetWriteDeadline is for the last word of TLS, which waits for nobody long.
func (w *wire) SetWriteDeadline(t time.Time) error {
	if w.file == nil {
		return w.Conn.SetWriteDeadline(t)
	}
	timeout := unix.NsecToTimeval(max(time.Until(t), time.Millisecond).Nanoseconds())
	failed := error(nil)
	err := w.raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
	})
	if err != nil {
		return err
	}
	return failed
}
