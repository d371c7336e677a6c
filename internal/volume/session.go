package volume

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

const (
	// inFlightMax bounds the memory of one connection's requests. Each counts
	// at least requestCost, which bounds their number to 128.
	inFlightMax = 64 << 20 // bytes
	requestCost = 512 << 10
	// readMax is the longest READ that the reader does itself when the kernel
	// has the bytes already: copying more would delay the next request.
	readMax = 64 << 10
	// writeMax is the longest WRITE that it does itself. File systems let one
	// write at a time into a file, so that two goroutines would wait for each
	// other, and to wake the second takes about as long as the write.
	writeMax = 256 << 10
	// directMin is the shortest READ that the kernel sends from its cache: for
	// less, the calls take longer than the copy.
	directMin = 32 << 10
	// yieldAfter so many requests the reader lets the scheduler run, which takes
	// what does not for 10 ms for stuck, and then looks at it all the time.
	yieldAfter = 64
	// heldBack is for how many bytes that were read or written replies may wait to
	// be sent with others. A client that was answered can go on meanwhile.
	heldBack = 64 << 10 // bytes
)

// errGone is the end of a connection by DISC.
var errGone = errors.New("the client has disconnected")

// session is the transmission part of a connection.
//
// One goroutine at a time reads. Having read a request, it starts the next
// reader and becomes the worker of its request: so a request alone is done by
// the goroutine that has read it, without a change of thread, and several are
// done at the same time.
type session struct {
	conn       net.Conn
	raw        net.Conn // below TLS
	inbox      *inbox
	attachment *attachment
	dialect    dialect
	budget     *semaphore.Weighted
	buffers    *buffers // of the server
	replies    *replies

	life    context.Context
	end     context.CancelCauseFunc
	workers sync.WaitGroup
}

func newSession(conn, raw net.Conn, a *attachment, d dialect, b *buffers) *session {
	s := &session{
		conn: conn, raw: raw, inbox: newInbox(conn), attachment: a, dialect: d,
		budget: semaphore.NewWeighted(inFlightMax), buffers: b,
	}
	s.replies = newReplies(conn, s.release)
	s.life, s.end = context.WithCancelCause(context.Background())
	return s
}

// run serves until the connection ends; then all requests are over.
func (s *session) run() error {
	s.workers.Go(s.read)
	<-s.life.Done()
	cause := context.Cause(s.life)
	if !errors.Is(cause, errGone) {
		_ = s.raw.Close() // whoever still reads or writes notices
	}
	s.workers.Wait()
	_ = s.replies.flush() // what was asked before DISC is answered
	_ = s.conn.Close()
	return cause
}

// job is a request with what it takes.
type job struct {
	request
	cost    int64
	buffer  []byte // replyRoom bytes, and the data of READ or WRITE
	problem unix.Errno
	head    [replyRoom]byte // for a reply without data
}

func (j *job) data() []byte { return j.buffer[replyRoom:] }

// read reads requests until it has one that another goroutine may not wait for.
func (s *session) read() {
	for n := 1; ; n++ {
		if n%yieldAfter == 0 {
			runtime.Gosched()
		}
		j, err := s.next()
		if err != nil {
			s.end(err)
			return
		}
		if s.doAtOnce(j) {
			continue
		}
		s.workers.Go(s.read)
		s.do(j)
		return
	}
}

// next reads a request and the data of a WRITE, once there is memory for it.
func (s *session) next() (*job, error) {
	if !s.inbox.more() || s.replies.held() > heldBack {
		if err := s.replies.flush(); err != nil {
			return nil, err
		}
	}
	header, err := s.inbox.header()
	if err != nil {
		return nil, err
	}
	r, err := decodeRequest(header)
	if err != nil {
		return nil, err
	}
	if r.command == cmdDisconnect {
		return nil, errGone
	}
	j := s.buffers.takeJob()
	j.request, j.cost, j.problem = r, requestCost, s.dialect.check(r, s.attachment.volume.size.Load())
	if r.command == cmdWrite && j.problem != 0 {
		if err := s.discard(r.length); err != nil {
			return nil, err
		}
	}
	if j.problem == 0 && (r.command == cmdRead || r.command == cmdWrite) {
		j.cost = max(requestCost, int64(r.length))
	}
	return j, s.prepare(j)
}

// discard reads the data of a WRITE that is refused whatever they are.
func (s *session) discard(length uint32) error {
	if err := s.replies.flush(); err != nil {
		return err
	}
	var some [4096]byte
	for length > 0 {
		part := some[:min(length, uint32(len(some)))]
		if err := s.inbox.fill(part); err != nil {
			return err
		}
		length -= uint32(len(part))
	}
	return nil
}

// prepare takes memory for a job, and the data of a WRITE.
func (s *session) prepare(j *job) error {
	if !s.budget.TryAcquire(j.cost) {
		// The requests before have to be answered first, and their replies may
		// be waiting for more.
		if err := s.replies.flush(); err != nil {
			return err
		}
		if err := s.budget.Acquire(s.life, j.cost); err != nil {
			return err
		}
	}
	if j.problem != 0 || j.command != cmdRead && j.command != cmdWrite {
		return nil
	}
	j.buffer = s.buffers.take(int(j.length))
	if j.command == cmdRead {
		return nil
	}
	if !s.inbox.has(len(j.data())) {
		if err := s.replies.flush(); err != nil {
			return err
		}
	}
	return s.inbox.fill(j.data())
}

// doAtOnce does what rarely takes any waiting. Its reply is sent together with
// others, at the latest when no further request is there.
func (s *session) doAtOnce(j *job) bool {
	if j.problem != 0 {
		s.finish(j, nil, j.problem)
		return true
	}
	switch {
	case j.length == 0:
		return false
	case j.command == cmdRead:
		return s.replyFromCache(j) || s.readAtOnce(j)
	case j.command == cmdWrite && j.flags&flagFUA == 0 && j.length <= writeMax:
		s.finish(j, nil, s.attachment.perform(j.request, j.buffer))
		return true
	}
	return false
}

func (s *session) readAtOnce(j *job) bool {
	if j.length > readMax || !s.attachment.volume.data.readCached(j.data(), int64(j.offset)) {
		return false
	}
	s.replyData(j)
	return true
}

// replyFromCache lets the kernel send a long READ's data from its cache, without
// a copy of them here. Should they be dropped from it just now, and the disk fail,
// the connection ends: the reply has begun.
func (s *session) replyFromCache(j *job) bool {
	data := s.attachment.volume.data
	if j.length < directMin || !s.replies.direct() || !data.cached(int64(j.offset), int64(j.length)) {
		return false
	}
	s.giveBuffer(j)
	begin := s.dialect.readHeader(j.head[:], j.request)
	s.replies.queue(reply{bytes: j.head[begin:], job: j, from: data})
	return true
}

func (s *session) replyData(j *job) {
	begin := s.dialect.readHeader(j.buffer, j.request)
	s.replies.add(j.buffer[begin:], j)
}

// do does a job and sends its reply.
func (s *session) do(j *job) {
	s.perform(j)
	if err := s.replies.flush(); err != nil {
		s.end(err)
	}
}

func (s *session) perform(j *job) {
	switch j.command {
	case cmdRead:
		if j.length == 0 {
			break
		}
		if err := s.attachment.volume.data.readAt(j.data(), int64(j.offset)); err != nil {
			s.finish(j, nil, err)
			return
		}
		s.replyData(j)
		return
	case cmdBlockStatus:
		reply, err := s.blockStatus(j.request)
		s.finish(j, reply, err)
		return
	}
	s.finish(j, nil, s.attachment.perform(j.request, j.buffer))
}

// finish queues the reply to a job whose data are not wanted any more.
func (s *session) finish(j *job, reply []byte, err error) {
	s.giveBuffer(j)
	switch {
	case err != nil:
		reply = s.dialect.done(j.head[:0], j.cookie, errnoOf(err))
	case reply == nil:
		reply = s.dialect.done(j.head[:0], j.cookie, 0)
	}
	s.replies.add(reply, j)
}

// release gives back what a job takes, once its reply is sent: so replies that
// a client does not take count as its requests.
func (s *session) release(j *job) {
	s.giveBuffer(j)
	s.budget.Release(j.cost)
	s.buffers.giveJob(j)
}

func (s *session) giveBuffer(j *job) {
	if j.buffer != nil {
		s.buffers.give(j.buffer)
		j.buffer = nil
	}
}

// maxExtents is how many extents one reply has at most; the client asks on.
const maxExtents = 4096

func (s *session) blockStatus(r request) ([]byte, error) {
	limit := maxExtents
	if r.flags&flagReqOne != 0 {
		limit = 1
	}
	extents, err := s.attachment.volume.data.extents(int64(r.offset), int64(r.length), limit)
	if err != nil {
		return nil, err
	}
	return blockStatus(nil, r.cookie, extents), nil
}

// perform does a command that has no data to reply with. buffer has replyRoom
// bytes before the data of a WRITE.
func (a *attachment) perform(r request, buffer []byte) error {
	data, offset, length := a.volume.data, int64(r.offset), int64(r.length)
	var err error
	switch r.command {
	case cmdRead: // of no bytes
	case cmdFlush:
		return a.flush()
	case cmdCache:
		return data.readAhead(offset, length)
	case cmdWrite:
		err = a.write(func() error { return data.writeAt(buffer[replyRoom:], offset) })
	case cmdTrim:
		err = a.inSteps(offset, length, data.trim)
	case cmdWriteZeroes:
		hole, fast := r.flags&flagNoHole == 0, r.flags&flagFastZero != 0
		err = a.inSteps(offset, length, func(offset, length int64) error { return data.zero(offset, length, hole, fast) })
	default:
		err = fmt.Errorf("command %d: %w", r.command, unix.EINVAL)
	}
	if err == nil && r.flags&flagFUA != 0 {
		err = data.flush()
	}
	return err
}
