package volume

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testClient speaks the protocol as the tests want it, also wrongly. Its
// methods end the test where the server does not keep to the protocol.
type testClient struct {
	t          *testing.T
	conn       net.Conn
	structured bool
	size       uint64
	flags      uint16
	cookies    atomic.Uint64
}

const answerWithin = 20 * time.Second

// dial connects to a socket and reads the greeting.
func dial(t *testing.T, socket string) *testClient {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	return greet(t, conn)
}

func greet(t *testing.T, conn net.Conn) *testClient {
	t.Helper()
	c := newTestClient(t, conn)
	hello := c.read(18)
	if binary.BigEndian.Uint64(hello) != magicHello || binary.BigEndian.Uint64(hello[8:]) != magicOption || hello[17] != 3 {
		t.Fatalf("greeting %x", hello)
	}
	c.send(binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes))
	return c
}

func newTestClient(t *testing.T, conn net.Conn) *testClient {
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(answerWithin))
	return &testClient{t: t, conn: conn}
}

func (c *testClient) send(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *testClient) read(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.conn, b); err != nil {
		c.t.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

// wantClosed demands that the server has ended the connection.
func (c *testClient) wantClosed() {
	c.t.Helper()
	if n, err := c.conn.Read(make([]byte, 1)); n > 0 || err == nil || isTimeout(err) {
		c.t.Errorf("the connection is open: %d bytes, %v", n, err)
	}
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error)
	return ok && timeout.Timeout()
}

// optionReply is one answer to an option.
type optionReply struct {
	kind replyKind
	data []byte
}

// option sends an option and gives all replies to it.
func (c *testClient) option(kind optionKind, data []byte) (replies []optionReply) {
	c.t.Helper()
	c.send(optionBytes(kind, data))
	for {
		header := c.read(20)
		if binary.BigEndian.Uint64(header) != magicReply || optionKind(binary.BigEndian.Uint32(header[8:])) != kind {
			c.t.Fatalf("reply %x to option %d", header, kind)
		}
		reply := optionReply{replyKind(binary.BigEndian.Uint32(header[12:])), c.read(int(binary.BigEndian.Uint32(header[16:])))}
		replies = append(replies, reply)
		if reply.kind == repAck || reply.kind >= 1<<31 {
			return replies
		}
	}
}

// last gives how an option ended.
func (c *testClient) last(kind optionKind, data []byte) replyKind {
	c.t.Helper()
	replies := c.option(kind, data)
	return replies[len(replies)-1].kind
}

func optionBytes(kind optionKind, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(kind))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func nbdString(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func infoData(name string, wants ...uint16) []byte {
	b := binary.BigEndian.AppendUint16(nbdString(name), uint16(len(wants)))
	for _, want := range wants {
		b = binary.BigEndian.AppendUint16(b, want)
	}
	return b
}

func metaData(name string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(nbdString(name), uint32(len(queries)))
	for _, query := range queries {
		b = append(b, nbdString(query)...)
	}
	return b
}

// startTLS goes on under TLS.
func (c *testClient) startTLS(config *tls.Config) {
	c.t.Helper()
	if last := c.last(optStartTLS, nil); last != repAck {
		c.t.Fatalf("STARTTLS: %#x", last)
	}
	secure := tls.Client(c.conn, config)
	if err := secure.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.conn = secure
}

// enter asks for structured replies and base:allocation if told to, and begins
// the transmission.
func (c *testClient) enter(export string, structured bool) *testClient {
	c.t.Helper()
	if structured {
		if last := c.last(optStructured, nil); last != repAck {
			c.t.Fatalf("STRUCTURED_REPLY: %#x", last)
		}
		if last := c.last(optSetMetaContext, metaData(export, contextAllocation)); last != repAck {
			c.t.Fatalf("SET_META_CONTEXT: %#x", last)
		}
	}
	c.structured = structured
	replies := c.option(optGo, infoData(export))
	if last := replies[len(replies)-1]; last.kind != repAck {
		c.t.Fatalf("GO: %#x %s", last.kind, last.data)
	}
	info := replies[0].data
	c.size, c.flags = binary.BigEndian.Uint64(info[2:]), binary.BigEndian.Uint16(info[10:])
	return c
}

func requestBytes(r request) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicRequest)
	b = binary.BigEndian.AppendUint16(b, r.flags)
	b = binary.BigEndian.AppendUint16(b, uint16(r.command))
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	b = binary.BigEndian.AppendUint64(b, r.offset)
	return binary.BigEndian.AppendUint32(b, r.length)
}

// answer is what came back for a request.
type answer struct {
	cookie  uint64
	errno   unix.Errno
	data    []byte
	extents []extent
}

// do sends one request, waits for its answer, and gives that.
func (c *testClient) do(r request, payload []byte) answer {
	c.t.Helper()
	r.cookie = c.cookies.Add(1)
	c.send(append(requestBytes(r), payload...))
	length := r.length
	if r.command != cmdRead {
		length = 0
	}
	a, err := c.answer(length)
	if err != nil {
		c.t.Fatal(err)
	}
	if a.cookie != r.cookie {
		c.t.Fatalf("answer to request %d, not to %d", a.cookie, r.cookie)
	}
	return a
}

// answer reads one answer; readLength is that of a READ, for simple replies.
func (c *testClient) answer(readLength uint32) (answer, error) {
	return c.answerOf(func(uint64) uint32 { return readLength })
}

// answerOf reads an answer to any of several requests, of which lengthOf knows
// the READs' lengths by their cookies.
func (c *testClient) answerOf(lengthOf func(cookie uint64) uint32) (a answer, err error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(c.conn, head); err != nil {
		return a, err
	}
	a.cookie = binary.BigEndian.Uint64(head[8:])
	if !c.structured {
		if binary.BigEndian.Uint32(head) != magicSimple {
			c.t.Errorf("a reply begins with %x", head)
			return a, io.ErrUnexpectedEOF
		}
		a.errno = unix.Errno(binary.BigEndian.Uint32(head[4:]))
		if a.errno == 0 {
			a.data = make([]byte, lengthOf(a.cookie))
			_, err = io.ReadFull(c.conn, a.data)
		}
		return a, err
	}
	return a, c.chunk(head, &a)
}

func (c *testClient) chunk(head []byte, a *answer) error {
	if binary.BigEndian.Uint32(head) != magicStructured || binary.BigEndian.Uint16(head[4:]) != chunkDone {
		c.t.Errorf("a chunk begins with %x", head)
		return io.ErrUnexpectedEOF
	}
	length := make([]byte, 4)
	if _, err := io.ReadFull(c.conn, length); err != nil {
		return err
	}
	body := make([]byte, binary.BigEndian.Uint32(length))
	if _, err := io.ReadFull(c.conn, body); err != nil {
		return err
	}
	switch binary.BigEndian.Uint16(head[6:]) {
	case chunkOffsetData:
		a.data = body[8:]
	case chunkError:
		a.errno = unix.Errno(binary.BigEndian.Uint32(body))
	case chunkBlockStatus:
		for body = body[4:]; len(body) > 0; body = body[8:] {
			a.extents = append(a.extents, extent{int64(binary.BigEndian.Uint32(body)), binary.BigEndian.Uint32(body[4:]) == stateHole|stateZero})
		}
	}
	return nil
}

// write writes bytes that are all the same, with any flags.
func (c *testClient) write(offset uint64, fill byte, length int, flags uint16) unix.Errno {
	c.t.Helper()
	return c.do(request{flags: flags, command: cmdWrite, offset: offset, length: uint32(length)}, bytes.Repeat([]byte{fill}, length)).errno
}

// wantBytes demands that bytes are all the same.
func (c *testClient) wantBytes(offset uint64, fill byte, length int) {
	c.t.Helper()
	got := c.do(request{command: cmdRead, offset: offset, length: uint32(length)}, nil)
	if got.errno != 0 || !bytes.Equal(got.data, bytes.Repeat([]byte{fill}, length)) {
		c.t.Errorf("at %d: error %d, or other bytes than %#x: %x", offset, got.errno, fill, got.data[:min(len(got.data), 16)])
	}
}
