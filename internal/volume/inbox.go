package volume

import (
	"errors"
	"io"
	"net"
)

// readBuffer holds some small requests that a client sends at once.
const readBuffer = 32 << 10

// inbox reads what a client sends: small requests many at a time, and long data
// to where they belong.
type inbox struct {
	conn   net.Conn
	wire   *wire // the same, if there is no TLS
	buffer []byte
	begin  int // of what was read and not taken yet
	end    int
	long   bool // the data taken last were, and the next ones may be
	busy   bool // and the client had sent the next request already
}

func newInbox(conn net.Conn) *inbox {
	in := &inbox{conn: conn, buffer: make([]byte, readBuffer)}
	in.wire, _ = conn.(*wire)
	return in
}

// more tells whether the header of a further request is there.
func (in *inbox) more() bool { return in.has(requestHeaderSize) }

// has tells whether so many bytes can be taken without waiting.
func (in *inbox) has(n int) bool { return in.end-in.begin >= n }

// header takes the header of a request. It is valid until the next call.
func (in *inbox) header() ([]byte, error) {
	if in.begin+requestHeaderSize > len(in.buffer) {
		in.begin, in.end = 0, copy(in.buffer, in.buffer[in.begin:in.end])
	}
	for !in.more() {
		limit := len(in.buffer)
		if in.long {
			limit = in.begin + requestHeaderSize
		}
		if err := in.read(limit); err != nil {
			if in.end > in.begin {
				err = within(err)
			}
			return nil, err
		}
	}
	in.begin += requestHeaderSize
	return in.buffer[in.begin-requestHeaderSize : in.begin], nil
}

// read reads at least a byte into the buffer, up to a limit.
func (in *inbox) read(limit int) error {
	n, err := in.conn.Read(in.buffer[in.end:limit])
	if in.end += n; n > 0 {
		return nil // an error comes again
	}
	return err
}

// fill takes the data of a request.
func (in *inbox) fill(p []byte) error {
	in.long = len(p) >= readBuffer
	p = p[in.takeRead(p):]
	for len(p) > 0 {
		if in.long {
			return within(in.fillDirectly(p))
		}
		if err := in.read(len(in.buffer)); err != nil {
			return within(err)
		}
		p = p[in.takeRead(p):]
	}
	return nil
}

// takeRead takes what was read already.
func (in *inbox) takeRead(p []byte) int {
	n := copy(p, in.buffer[in.begin:in.end])
	if in.begin += n; in.begin == in.end {
		in.begin, in.end = 0, 0
	}
	return n
}

// fillDirectly reads data to where they belong, and together with their end the
// header of the next request, if that is there.
func (in *inbox) fillDirectly(p []byte) error {
	if in.wire == nil {
		_, err := io.ReadFull(in.conn, p)
		return err
	}
	for {
		n, err := in.wire.readTo(in.busy, p, in.buffer[:requestHeaderSize])
		if n == 0 {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
		if n >= len(p) {
			in.end = n - len(p)
			in.busy = in.end > 0
			return nil
		}
		p = p[n:]
	}
}

// within is an error in the middle of a request, where no end is expected.
func within(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
