package qemu

import (
	"sync"
	"sync/atomic"
	"time"

	"godwit.dev/godwit/internal/qmp"
)

// Kind says what an Event tells of.
type Kind string

// The kinds of events.
const (
	Stopped          Kind = "stopped"           // no vCPU runs any more
	Resumed          Kind = "resumed"           // vCPUs begin to run
	PassBegun        Kind = "pass-begun"        // Pass: a copy has gone through the memory and begins anew
	MigrationChanged Kind = "migration-changed" // Status
	Shutdown         Kind = "shutdown"          // Reason: the guest, or somebody, has ended it
	DiskError        Kind = "disk-error"        // Reason: the guest was stopped, because a disk refused
	GuestPanicked    Kind = "guest-panicked"
	CardGone         Kind = "card-gone" // the guest has let go of a card: see Gone
)

// Event is something that happened to an instance.
type Event struct {
	Kind   Kind
	At     time.Time // QEMU's own, microseconds of the host's wall clock
	Pass   int
	Status Status
	Reason string
}

// eventQueue bounds what a subscriber may leave waiting. A migration has some
// ten events, and one per pass.
const eventQueue = 1024

// Subscription is a queue of an instance's events, in their order.
type Subscription struct {
	raw    *qmp.Subscription
	events chan Event
	slow   atomic.Bool // too much was left waiting
	stop   func()      // ends the goroutine; may be called again
	done   sync.WaitGroup
}

// Subscribe begins to queue the instance's events. The caller closes it.
func (i *Instance) Subscribe() *Subscription {
	stopped := make(chan struct{})
	s := &Subscription{
		raw: i.monitor.SubscribePatiently(eventQueue, qmp.EventStop, qmp.EventResume, qmp.EventMigration, qmp.EventMigrationPass,
			qmp.EventShutdown, qmp.EventBlockIOError, qmp.EventGuestPanicked, qmp.EventDeviceDeleted),
		events: make(chan Event),
		stop:   sync.OnceFunc(func() { close(stopped) }),
	}
	s.done.Go(func() { s.run(stopped) })
	return s
}

// Events gives the queue. It is closed when the instance ends, is closed, or
// the subscriber has left too much waiting. Of passes that began in a row while
// the subscriber was busy it has the newest only.
func (s *Subscription) Events() <-chan Event { return s.events }

// Err says why Events was closed; see qmp.Subscription.
func (s *Subscription) Err() error {
	if s.slow.Load() {
		return qmp.ErrSlow
	}
	return s.raw.Err()
}

// Close ends the subscription. It may be called again.
func (s *Subscription) Close() {
	s.raw.Close()
	s.stop()
	s.done.Wait()
}

// run hands events on in their order. While the subscriber is busy they wait
// here; of passes that begin in a row only the newest is kept, because a QEMU
// that is held begins thousands in a second.
func (s *Subscription) run(stopped <-chan struct{}) {
	defer close(s.events)
	defer s.raw.Close()
	var waiting []Event
	raw := s.raw.Events()
	for raw != nil || len(waiting) > 0 {
		var next Event
		var out chan<- Event
		if len(waiting) > 0 {
			next, out = waiting[0], s.events
		}
		if len(waiting) > eventQueue {
			s.slow.Store(true)
			return
		}
		select {
		case one, open := <-raw:
			if !open {
				raw = nil
				continue
			}
			if event, ok := translate(one); ok {
				waiting = enqueue(waiting, event)
			}
		case out <- next:
			waiting = waiting[1:]
		case <-stopped:
			return
		}
	}
}

func enqueue(waiting []Event, event Event) []Event {
	last := len(waiting) - 1
	if last >= 0 && event.Kind == PassBegun && waiting[last].Kind == PassBegun {
		waiting[last] = event
		return waiting
	}
	return append(waiting, event)
}

// translate puts QEMU's event into our words. One whose data cannot be read is
// left out only where it would say nothing without them.
func translate(raw qmp.Event) (event Event, ok bool) {
	event.At = raw.Time
	switch raw.Name {
	case qmp.EventStop:
		event.Kind = Stopped
	case qmp.EventResume:
		event.Kind = Resumed
	case qmp.EventGuestPanicked:
		event.Kind = GuestPanicked
	case qmp.EventMigration:
		var data qmp.MigrationEvent
		err := raw.Decode(&data)
		event.Kind, event.Status = MigrationChanged, Status(data.Status)
		return event, err == nil
	case qmp.EventMigrationPass:
		var data qmp.MigrationPassEvent
		err := raw.Decode(&data)
		event.Kind, event.Pass = PassBegun, int(data.Pass)
		return event, err == nil
	case qmp.EventShutdown:
		var data qmp.ShutdownEvent
		_ = raw.Decode(&data)
		event.Kind, event.Reason = Shutdown, string(data.Reason)
	case qmp.EventBlockIOError:
		var data qmp.BlockIOErrorEvent
		_ = raw.Decode(&data)
		event.Kind, event.Reason = DiskError, data.Reason
	case qmp.EventDeviceDeleted:
		var data qmp.DeviceDeletedEvent
		err := raw.Decode(&data)
		event.Kind = CardGone
		return event, err == nil && data.Device != nil
	default:
		return event, false
	}
	return event, true
}
