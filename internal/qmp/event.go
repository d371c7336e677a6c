package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Event is something that QEMU reports by itself.
type Event struct {
	Name string
	Time time.Time       // QEMU's own, when it happened; zero if QEMU's clock failed
	Data json.RawMessage // decode into the generated structure of the event
}

// Decode decodes the event's data into the structure of its name.
func (e Event) Decode(into any) error {
	if err := json.Unmarshal(e.Data, into); err != nil {
		return fmt.Errorf("QMP event %s: %w", e.Name, err)
	}
	return nil
}

// Subscription is a bounded queue of events. See the package comment.
type Subscription struct {
	client  *Client
	names   []string
	patient bool
	left    chan struct{} // closed before events is
	err     error         // set under client.mu before left is closed

	mu     sync.Mutex // of sending to events and closing it
	ended  bool
	events chan Event
}

// Subscribe queues up to limit events of the given names, or of all when none
// is given. On a connection that has ended the subscription has ended too.
func (c *Client) Subscribe(limit int, names ...string) *Subscription {
	return c.subscribe(&Subscription{names: names, events: make(chan Event, max(limit, 1))})
}

// SubscribePatiently is Subscribe for one that does nothing but take: when its
// queue is full, the Client reads nothing more from QEMU until it has taken, so
// that no burst of events ends it. It must not call the Client between.
func (c *Client) SubscribePatiently(limit int, names ...string) *Subscription {
	return c.subscribe(&Subscription{names: names, events: make(chan Event, max(limit, 1)), patient: true})
}

func (c *Client) subscribe(s *Subscription) *Subscription {
	s.client, s.left = c, make(chan struct{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subscriptions = append(c.subscriptions, s)
	if c.err != nil {
		c.drop(s, c.err)
	}
	return s
}

// Events gives the queue; it is closed at the end of the subscription, after
// the last event that was queued.
func (s *Subscription) Events() <-chan Event { return s.events }

// Err says why Events was closed, nil before: ErrSlow, ErrClosed, or the
// Client's own end.
func (s *Subscription) Err() error {
	s.client.mu.Lock()
	defer s.client.mu.Unlock()
	return s.err
}

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.client.mu.Lock()
	defer s.client.mu.Unlock()
	s.client.drop(s, ErrClosed)
}

// offer queues an event; false if there is no room and nobody waits for some.
func (s *Subscription) offer(event Event) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.names) > 0 && !slices.Contains(s.names, event.Name) {
		return true
	}
	select {
	case s.events <- event:
		return true
	default:
	}
	if !s.patient {
		return false
	}
	select {
	case s.events <- event:
	case <-s.left:
	}
	return true
}

// drop ends a subscription that has not ended yet. The caller holds c.mu.
func (c *Client) drop(s *Subscription, err error) {
	if s.err != nil {
		return
	}
	s.err = err
	close(s.left)
	s.mu.Lock()
	s.ended = true
	close(s.events)
	s.mu.Unlock()
	c.subscriptions = slices.DeleteFunc(c.subscriptions, func(other *Subscription) bool { return other == s })
}

// publish queues the event with all that want it.
func (c *Client) publish(event Event) {
	c.mu.Lock()
	all := slices.Clone(c.subscriptions)
	c.mu.Unlock()
	for _, s := range all {
		if s.offer(event) {
			continue
		}
		c.mu.Lock()
		c.drop(s, ErrSlow)
		c.mu.Unlock()
	}
}

// read is the Client's one goroutine: it takes QEMU's lines until the end.
func (c *Client) read() {
	for {
		m, err := c.next()
		if err == nil {
			err = c.dispatch(m)
		}
		if err != nil {
			c.end(err)
			return
		}
	}
}

// wholeLines leaves out what follows the last line's end: QEMU ended in the
// middle of it.
func wholeLines(data []byte, atEOF bool) (advance int, line []byte, err error) {
	if end := bytes.IndexByte(data, '\n'); end >= 0 {
		return end + 1, data[:end], nil
	}
	if atEOF {
		return len(data), nil, nil
	}
	return 0, nil, nil
}

// next reads one line. Its errors are final for the connection.
func (c *Client) next() (message, error) {
	var m message
	if !c.lines.Scan() {
		if err := c.lines.Err(); errors.Is(err, bufio.ErrTooLong) {
			return m, fmt.Errorf("%w: a line of more than %d bytes", ErrProtocol, maxLine)
		} else if err != nil {
			return m, fmt.Errorf("%w: %w", ErrGone, err)
		}
		return m, ErrGone
	}
	if err := json.Unmarshal(c.lines.Bytes(), &m); err != nil {
		return m, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return m, nil
}

func (c *Client) dispatch(m message) error {
	if m.Event != "" {
		event := Event{Name: m.Event, Data: m.Data}
		if m.Timestamp.Seconds >= 0 {
			event.Time = time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*int64(time.Microsecond))
		}
		c.publish(event)
		return nil
	}
	if m.QMP != nil {
		return errGreetedAgain
	}
	if m.ID == nil {
		if m.Error != nil {
			return fmt.Errorf("%w: it could not read a command: %s", ErrProtocol, m.Error.Desc)
		}
		return fmt.Errorf("%w: a line that is neither reply nor event", ErrProtocol)
	}
	c.mu.Lock()
	call, known := c.pending[*m.ID]
	delete(c.pending, *m.ID)
	c.mu.Unlock()
	if !known {
		return fmt.Errorf("%w: a reply to command %d, which is not in flight", ErrProtocol, *m.ID)
	}
	if call.inBand {
		<-c.slots
	}
	call.reply <- m
	return nil
}

// end closes the connection for the given reason; the first reason stays.
func (c *Client) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	for _, s := range slices.Clone(c.subscriptions) {
		c.drop(s, err)
	}
	c.conn.Close()
	close(c.done)
}
