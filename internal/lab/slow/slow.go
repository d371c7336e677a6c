// Package slow has a TCP link that can be made slow: what goes over it arrives
// late, in both directions, whole and in order.
package slow

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Dial reaches what a link leads to.
type Dial func(ctx context.Context) (net.Conn, error)

// Link takes connections and leads each to where Dial does. It is safe for
// concurrent use.
type Link struct {
	listener net.Listener
	dial     Dial
	delay    atomic.Int64
	life     context.Context
	end      context.CancelFunc
	tasks    sync.WaitGroup

	mu       sync.Mutex
	present  context.Context // of the connections that there are
	breakOff context.CancelFunc
}

// New opens a link that is not slow. It closes the listener.
func New(listener net.Listener, dial Dial) *Link {
	l := &Link{listener: listener, dial: dial}
	l.life, l.end = context.WithCancel(context.Background())
	l.present, l.breakOff = context.WithCancel(l.life)
	l.tasks.Go(l.accept)
	return l
}

// Delay has everything that is sent from now on arrive so much later; a round
// trip takes twice as long.
func (l *Link) Delay(delay time.Duration) { l.delay.Store(int64(delay)) }

// Break ends the connections that there are; what is on the way is lost. New ones
// can be made.
func (l *Link) Break() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breakOff()
	l.present, l.breakOff = context.WithCancel(l.life)
}

// Close ends all connections, and takes no more.
func (l *Link) Close() error {
	l.end()
	err := l.listener.Close()
	l.tasks.Wait()
	return err
}

func (l *Link) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return // it was closed
		}
		l.mu.Lock()
		present := l.present
		l.mu.Unlock()
		l.tasks.Go(func() { l.serve(present, near) })
	}
}

// serve carries one connection until one of its ends has ended.
func (l *Link) serve(present context.Context, near net.Conn) {
	defer near.Close()
	far, err := l.dial(present)
	if err != nil {
		return // who has connected sees its connection end
	}
	defer far.Close()
	ctx, end := context.WithCancel(present)
	defer end()
	stop := context.AfterFunc(ctx, func() { _ = errors.Join(near.Close(), far.Close()) })
	defer stop()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		both.Go(func() {
			defer end()
			l.carry(ctx, way[1], way[0])
		})
	}
	both.Wait()
}

// chunk is what was read at once, and when it may arrive.
type chunk struct {
	data []byte
	due  time.Time
}

// room is how many chunks are on the way at most.
const room = 1024

// carry copies until either end has ended.
func (l *Link) carry(ctx context.Context, to io.Writer, from io.Reader) {
	way := make(chan chunk, room)
	go func() {
		defer close(way)
		for {
			data := make([]byte, 16<<10)
			n, err := from.Read(data)
			if n > 0 {
				select {
				case way <- chunk{data[:n], time.Now().Add(time.Duration(l.delay.Load()))}:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	for one := range way {
		if !until(ctx, one.due) {
			return
		}
		if _, err := to.Write(one.data); err != nil {
			return
		}
	}
}

// until is false if ctx ends before.
func until(ctx context.Context, due time.Time) bool {
	wait := time.NewTimer(time.Until(due))
	defer wait.Stop()
	select {
	case <-wait.C:
		return true
	case <-ctx.Done():
		return false
	}
}
