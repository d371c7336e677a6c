package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"godwit.dev/godwit/internal/qmp/schema"
)

const (
	// maxLine bounds one reply or event. The largest real one, the schema of
	// QEMU 10.0, has 236 KiB.
	maxLine = 8 << 20
	// maxInFlight keeps QEMU reading: it suspends a monitor at the 8th waiting
	// command (QMP_REQ_QUEUE_LEN_MAX in QEMU's monitor/qmp.c).
	maxInFlight = 7
	// writeTimeout bounds a write. Commands fit the socket's buffer, so that a
	// write can only block when QEMU has stopped reading altogether.
	writeTimeout = 10 * time.Second
	// handshakeTimeout bounds Dial when its context does not.
	handshakeTimeout = 30 * time.Second
)

// Executor runs one command: a Client, or what stands in for it.
type Executor interface {
	// Execute sends args (nil for none), waits for the reply and decodes it
	// into result (nil to ignore it). A refusal is an *Error.
	Execute(ctx context.Context, command string, args, result any) error
	// ExecuteOOB is Execute out of band where that was negotiated, else in band.
	ExecuteOOB(ctx context.Context, command string, args, result any) error
}

// Greeting is what QEMU says of itself on connection.
type Greeting struct {
	Major, Minor, Micro int
	Package             string // the distribution's version, may be empty
	OOB                 bool   // out-of-band execution was negotiated
}

// Client is one connection to a QEMU. See the package comment.
type Client struct {
	conn     net.Conn
	lines    *bufio.Scanner
	greeting Greeting
	slots    chan struct{} // one taken per in-band command in flight
	writing  chan struct{} // holds one token; a lock that a context can leave
	passing  chan struct{} // the same, of those that pass a descriptor
	reader   sync.WaitGroup
	done     chan struct{}

	mu            sync.Mutex
	err           error // set before done is closed
	lastID        uint64
	pending       map[uint64]call
	subscriptions []*Subscription
}

// call is a command that QEMU has not answered yet.
type call struct {
	reply  chan message // room for the one reply
	inBand bool
}

// message is all that QEMU can write, in one.
type message struct {
	QMP *struct {
		Version struct {
			QEMU    struct{ Major, Minor, Micro int } `json:"qemu"`
			Package string                            `json:"package"`
		} `json:"version"`
		Capabilities []string `json:"capabilities"`
	} `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class Class  `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID        *uint64         `json:"id"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// request is all that a client can write.
type request struct {
	Execute   string `json:"execute,omitempty"`
	ExecOOB   string `json:"exec-oob,omitempty"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
	fds       []int  // that go along with it
}

// Dial connects to the monitor at socketPath and negotiates, out-of-band
// execution included where QEMU offers it. It waits for the greeting until the
// context ends, at most 30 seconds.
//
// A QEMU that has just begun may greet twice, and then forgets what was negotiated
// before the second time: it hears of a client both in its main thread and in the
// monitor's, to which the socket is handed over meanwhile. The next connection is
// greeted once.
func Dial(ctx context.Context, socketPath string) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	for {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", socketPath)
		if err != nil {
			return nil, fmt.Errorf("QMP: %w", err)
		}
		client, err := NewClient(ctx, conn)
		if !errors.Is(err, errGreetedAgain) {
			return client, err
		}
	}
}

// NewClient negotiates on a connection that it takes over, also on error.
func NewClient(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{
		conn:    conn,
		lines:   bufio.NewScanner(conn),
		slots:   make(chan struct{}, maxInFlight),
		writing: make(chan struct{}, 1),
		passing: make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: make(map[uint64]call),
	}
	c.lines.Buffer(make([]byte, 64<<10), maxLine)
	c.lines.Split(wholeLines)
	// A context cannot interrupt a read, a deadline in the past can.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	offered, err := c.readGreeting()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		if cause := context.Cause(ctx); cause != nil {
			return nil, fmt.Errorf("QMP greeting: %w", cause)
		}
		return nil, fmt.Errorf("QMP greeting: %w", err)
	}
	c.reader.Go(c.read)
	if err := c.negotiate(ctx, offered); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) readGreeting() (offered []string, err error) {
	m, err := c.next()
	if err != nil {
		return nil, err
	}
	if m.QMP == nil {
		return nil, fmt.Errorf("%w: the first line is no greeting", ErrProtocol)
	}
	v := m.QMP.Version
	c.greeting = Greeting{Major: v.QEMU.Major, Minor: v.QEMU.Minor, Micro: v.QEMU.Micro, Package: v.Package}
	return m.QMP.Capabilities, nil
}

func (c *Client) negotiate(ctx context.Context, offered []string) error {
	var args any
	if slices.Contains(offered, "oob") {
		args = map[string][]string{"enable": {"oob"}}
	}
	if err := c.Execute(ctx, "qmp_capabilities", args, nil); err != nil {
		return err
	}
	c.greeting.OOB = args != nil
	return nil
}

// Greeting gives what QEMU said on connection.
func (c *Client) Greeting() Greeting { return c.greeting }

// Done is closed when the connection has ended; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err gives the reason of the end, nil before: ErrGone, ErrProtocol or
// ErrClosed, with details.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection; QEMU runs on. It returns when the Client's
// goroutine has ended and may be called more than once.
func (c *Client) Close() error {
	c.end(ErrClosed)
	c.reader.Wait()
	return nil
}

// Execute implements Executor, in band.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	return c.execute(ctx, command, request{Execute: command, Arguments: args}, result)
}

func (c *Client) execute(ctx context.Context, command string, r request, result any) error {
	wait, err := c.begin(ctx, command, r)
	if err != nil {
		return err
	}
	return wait(ctx, result)
}

// Wait waits for the reply to a command and decodes it into result, as Execute does.
type Wait func(ctx context.Context, result any) error

// Begin is Execute that returns when the command has been written. QEMU executes
// commands that were begun one after the other in that order. The reply may be left
// alone.
func (c *Client) Begin(ctx context.Context, command string, args any) (Wait, error) {
	return c.begin(ctx, command, request{Execute: command, Arguments: args})
}

func (c *Client) begin(ctx context.Context, command string, r request) (Wait, error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("QMP %s: not sent: %w", command, context.Cause(ctx))
	case <-c.done:
		return nil, fmt.Errorf("QMP %s: not sent: %w", command, c.Err())
	}
	return c.start(ctx, command, r)
}

// ExecuteOOB implements Executor. Only commands that the schema marks with
// allow-oob may be sent so.
func (c *Client) ExecuteOOB(ctx context.Context, command string, args, result any) error {
	if !c.greeting.OOB {
		return c.Execute(ctx, command, args, result)
	}
	wait, err := c.start(ctx, command, request{ExecOOB: command, Arguments: args})
	if err != nil {
		return err
	}
	return wait(ctx, result)
}

func (c *Client) start(ctx context.Context, command string, r request) (Wait, error) {
	reply, err := c.send(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("QMP %s: not sent: %w", command, err)
	}
	return func(ctx context.Context, result any) error { return c.wait(ctx, command, reply, result) }, nil
}

func (c *Client) wait(ctx context.Context, command string, reply <-chan message, result any) error {
	select {
	case m := <-reply:
		return m.decode(command, result)
	case <-ctx.Done():
		return fmt.Errorf("QMP %s: %w", command, context.Cause(ctx))
	case <-c.done:
	}
	select {
	case m := <-reply: // it came before the end
		return m.decode(command, result)
	default:
		return fmt.Errorf("QMP %s: %w", command, c.Err())
	}
}

// send writes the request and gives the channel on which its reply will come.
// It takes over the in-band slot that the caller holds.
func (c *Client) send(ctx context.Context, r request) (<-chan message, error) {
	inBand := r.Execute != ""
	release := func() {
		if inBand {
			<-c.slots
		}
	}
	select {
	case c.writing <- struct{}{}:
	case <-ctx.Done():
		release()
		return nil, context.Cause(ctx)
	case <-c.done:
		release()
		return nil, c.Err()
	}
	defer func() { <-c.writing }()
	reply := make(chan message, 1)
	c.mu.Lock()
	c.lastID++
	r.ID = c.lastID
	line, err := json.Marshal(r)
	if err == nil {
		c.pending[r.ID] = call{reply: reply, inBand: inBand}
	}
	c.mu.Unlock()
	if err != nil {
		release()
		return nil, err
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) // fails only when Write does
	if err := c.write(append(line, '\n'), r.fds); err != nil {
		// Part of a command may have been written: nothing can follow it.
		c.end(fmt.Errorf("%w: %w", ErrGone, err))
		return nil, c.Err()
	}
	return reply, nil
}

func (m message) decode(command string, result any) error {
	if m.Error != nil {
		return &Error{Command: command, Class: m.Error.Class, Desc: m.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("QMP %s: reply: %w", command, err)
	}
	return nil
}

// ReadSchema asks QEMU to describe itself.
func ReadSchema(ctx context.Context, e Executor) (*schema.Schema, error) {
	var reply json.RawMessage
	if err := e.Execute(ctx, "query-qmp-schema", nil, &reply); err != nil {
		return nil, err
	}
	return schema.Parse(reply)
}
