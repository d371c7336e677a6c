package supervise

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A program has its monitor keep descriptors by one socket: a message for each
// request, which begins with what is asked for, and one for its answer, which begins
// with whether that was done. A descriptor goes with its message (unix(7), SCM_RIGHTS).
const (
	askKeep  = 'k' // a name, with a descriptor
	askGive  = 'g' // a name
	askDrop  = 'd' // a name
	askNames = 'n'
	done     = 'y' // and names, each on a line; a descriptor
	refused  = 'x' // and the cause
)

const (
	keptMax = 1024 // names, each with a descriptor
	nameMax = 32   // bytes
	// messageMax holds the longest answer: all names.
	messageMax = 1 + keptMax*(nameMax+1)
	// answerWithin is how long a program waits for its monitor, which only looks
	// into its memory.
	answerWithin = 5 * time.Second
)

// kept is what a monitor keeps for its program, from one life to the next.
type kept map[string]int

// serve answers one life of the program, until its end of the connection is closed.
func (k kept) serve(conn *net.UnixConn) {
	buffer, rights := make([]byte, 1+nameMax+1), make([]byte, unix.CmsgSpace(4))
	for {
		n, r, flags, _, err := conn.ReadMsgUnix(buffer, rights)
		if err != nil || n == 0 {
			return
		}
		fd, err := passed(rights[:r], flags)
		answer, give := []byte(nil), -1
		if err == nil {
			answer, give, err = k.take(buffer[0], string(buffer[1:n]), fd)
		}
		if err != nil {
			answer = append([]byte{refused}, err.Error()...)
		} else {
			answer = append([]byte{done}, answer...)
		}
		if err := send(conn, answer, give); err != nil {
			return
		}
	}
}

// take carries out a request. It gives the answer, with a descriptor that stays k's,
// or -1. fd, or -1, becomes k's.
func (k kept) take(ask byte, name string, fd int) (answer []byte, give int, err error) {
	_, known := k[name]
	switch {
	case (ask == askKeep) != (fd >= 0):
		err = errors.New("a descriptor comes with what is to be kept, and with nothing else")
	case ask == askNames:
		return []byte(strings.Join(slices.Sorted(maps.Keys(k)), "\n")), -1, nil
	case name == "" || len(name) > nameMax || strings.Contains(name, "\n"):
		err = fmt.Errorf("a name has 1 to %d bytes, on one line", nameMax)
	case ask == askKeep && !known && len(k) >= keptMax:
		err = fmt.Errorf("%d descriptors are kept already", keptMax)
	case ask == askKeep:
		k.drop(name)
		k[name] = fd
		return nil, -1, nil
	case ask == askGive && known:
		return nil, k[name], nil
	case ask == askGive:
		return nil, -1, nil
	case ask == askDrop:
		k.drop(name)
		return nil, -1, nil
	default:
		err = fmt.Errorf("%q is asked for, which nobody knows", ask)
	}
	return nil, -1, errors.Join(err, closeOne(fd))
}

func (k kept) drop(name string) {
	if fd, known := k[name]; known {
		_ = unix.Close(fd) // nothing is written by it
		delete(k, name)
	}
}

func (k kept) dropAll() {
	for name := range k {
		k.drop(name)
	}
}

// passed gives the descriptor that came with a message, or -1.
func passed(rights []byte, flags int) (fd int, err error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return -1, err
	}
	var all []int
	for _, one := range messages {
		fds, err := unix.ParseUnixRights(&one)
		if err != nil {
			return -1, err
		}
		all = append(all, fds...)
	}
	if len(all) == 1 && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) == 0 {
		return all[0], nil
	}
	for _, fd := range all {
		err = errors.Join(err, unix.Close(fd))
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(all) > 1 {
		return -1, errors.Join(errors.New("the message is too long, or its descriptor could not be had"), err)
	}
	return -1, nil
}

func send(conn *net.UnixConn, message []byte, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	_, _, err := conn.WriteMsgUnix(message, rights, nil)
	return err
}

func closeOne(fd int) error {
	if fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// socketPair gives the two ends of a connection that keeps messages apart.
func socketPair() (monitor *net.UnixConn, program *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	own := os.NewFile(uintptr(fds[0]), "program")
	defer own.Close()
	program = os.NewFile(uintptr(fds[1]), "monitor")
	if monitor, err = unixConn(own); err != nil {
		return nil, nil, errors.Join(err, program.Close())
	}
	return monitor, program, nil
}

func unixConn(socket *os.File) (*net.UnixConn, error) {
	conn, err := net.FileConn(socket)
	if err != nil {
		return nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s is no Unix socket", socket.Name()), conn.Close())
	}
	return unixConn, nil
}

// Keeper is the monitor's keeping of descriptors, as its program sees it. They stay
// open when the program ends, and are there for its next life; they are closed when
// the monitor ends. All methods may be called concurrently.
type Keeper struct {
	within time.Duration // for an answer

	mu   sync.Mutex
	conn *net.UnixConn
	owed int // answers that have not come yet
}

// Keep has a copy of a descriptor kept by a name of 1 to 32 bytes, in place of the one
// that was. It fails when as many as there may be are kept.
func (k *Keeper) Keep(name string, fd int) error {
	_, given, err := k.ask(askKeep, name, fd)
	return errors.Join(err, closeOne(given))
}

// Kept gives a copy of the descriptor of that name, which is the caller's; false if
// there is none. Whoever wants it kept no longer drops it.
func (k *Keeper) Kept(name string) (fd int, found bool, err error) {
	_, fd, err = k.ask(askGive, name, -1)
	return fd, fd >= 0, err
}

// Drop closes what is kept by a name, if anything is.
func (k *Keeper) Drop(name string) error {
	_, given, err := k.ask(askDrop, name, -1)
	return errors.Join(err, closeOne(given))
}

// Names gives the names of all that is kept, in their order.
func (k *Keeper) Names() ([]string, error) {
	text, given, err := k.ask(askNames, "", -1)
	if err = errors.Join(err, closeOne(given)); err != nil || text == "" {
		return nil, err
	}
	return strings.Split(text, "\n"), nil
}

// ask makes a request, and gives what is answered. After an answer that has not come in
// time those that are late come first, in the order of the requests.
func (k *Keeper) ask(what byte, name string, fd int) (text string, given int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := errors.Join(k.conn.SetDeadline(time.Now().Add(k.within)), send(k.conn, append([]byte{what}, name...), fd)); err != nil {
		return "", -1, fmt.Errorf("ask the monitor: %w", err)
	}
	for k.owed++; ; {
		text, given, err = k.answer()
		if k.owed == 0 || errors.Is(err, errUnanswered) {
			return text, given, err
		}
		if err := closeOne(given); err != nil {
			return "", -1, fmt.Errorf("let go of a late answer: %w", err)
		}
	}
}

var errUnanswered = errors.New("the monitor does not answer")

// answer gives the next one. It must be called with mu held.
func (k *Keeper) answer() (text string, given int, err error) {
	buffer, rights := make([]byte, messageMax), make([]byte, unix.CmsgSpace(4))
	n, r, flags, _, err := k.conn.ReadMsgUnix(buffer, rights)
	if err != nil || n == 0 {
		return "", -1, fmt.Errorf("%w: %w", errUnanswered, cmp.Or(err, io.EOF))
	}
	k.owed--
	given, err = passed(rights[:r], flags)
	if err == nil && buffer[0] != done {
		err = errors.New(string(buffer[1:n]))
	}
	if err != nil {
		return "", -1, errors.Join(fmt.Errorf("the monitor does not do it: %w", err), closeOne(given))
	}
	return string(buffer[1:n]), given, nil
}
