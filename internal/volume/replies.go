package volume

import (
	"crypto/tls"
	"net"
	"sync"
)

// replies sends the replies of one connection. Whoever flushes sends all that
// wait, also those that others add meanwhile, so that many replies take few
// system calls.
type replies struct {
	conn   net.Conn
	wire   *wire      // the same, if there is no TLS
	secure bool       // there is TLS
	sent   func(*job) // also called for a reply that could not be sent

	mu      sync.Mutex
	waiting []reply
	bytes   int     // that their requests have read or written
	spare   []reply // the list that is not in use
	sending bool
	failed  error
	joined  []byte // for TLS, which makes a record of each write
	vector  [][]byte
}

type reply struct {
	bytes []byte
	job   *job
	from  *backing // of which the job's range follows, or nil
}

// direct tells whether replies may name bytes of a file instead of having them.
func (r *replies) direct() bool { return r.wire != nil && r.wire.file != nil }

func newReplies(conn net.Conn, sent func(*job)) *replies {
	r := &replies{conn: conn, sent: sent}
	r.wire, _ = conn.(*wire)
	_, r.secure = conn.(*tls.Conn)
	return r
}

// held is how many bytes the requests have read or written whose replies wait.
func (r *replies) held() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes
}

// add queues a reply; a flush sends it.
func (r *replies) add(bytes []byte, j *job) { r.queue(reply{bytes: bytes, job: j}) }

func (r *replies) queue(one reply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = append(r.waiting, one)
	if one.job.command == cmdRead || one.job.command == cmdWrite {
		r.bytes += int(one.job.length)
	}
}

// flush sends what waits, or leaves it to another goroutine that is at it.
func (r *replies) flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sending {
		return nil
	}
	r.sending = true
	for len(r.waiting) > 0 {
		batch := r.waiting
		r.waiting, r.bytes = r.spare[:0], 0
		failed := r.failed
		r.mu.Unlock()
		if failed == nil {
			failed = r.send(batch)
		}
		for i := range batch {
			r.sent(batch[i].job)
			batch[i] = reply{}
		}
		r.mu.Lock()
		r.spare, r.failed = batch, failed
	}
	r.sending = false
	return r.failed
}

// joinMax is up to what size replies are copied together for TLS.
const joinMax = 64 << 10

func (r *replies) send(batch []reply) error {
	if r.secure {
		return r.sendJoined(batch)
	}
	r.vector = r.vector[:0]
	for _, one := range batch {
		r.vector = append(r.vector, one.bytes)
		if one.from == nil {
			continue
		}
		if err := r.wire.writeFrom(r.vector); err != nil {
			return err
		}
		r.vector = r.vector[:0]
		if err := r.wire.sendFile(one.from.fd, int64(one.job.offset), int(one.job.length)); err != nil {
			return err
		}
	}
	if r.wire != nil {
		return r.wire.writeFrom(r.vector)
	}
	all := net.Buffers(r.vector) // WriteTo takes it apart
	_, err := all.WriteTo(r.conn)
	return err
}

func (r *replies) sendJoined(batch []reply) error {
	for _, one := range batch {
		if len(r.joined)+len(one.bytes) > joinMax {
			if err := r.writeJoined(); err != nil {
				return err
			}
		}
		if len(one.bytes) <= joinMax {
			r.joined = append(r.joined, one.bytes...)
			continue
		}
		if _, err := r.conn.Write(one.bytes); err != nil {
			return err
		}
	}
	return r.writeJoined()
}

func (r *replies) writeJoined() error {
	if len(r.joined) == 0 {
		return nil
	}
	_, err := r.conn.Write(r.joined)
	r.joined = r.joined[:0]
	return err
}
