package lifecycle

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// always is a store in which one record stays as it is.
type always struct {
	store.Records
	value any
}

func (a always) Get(_ context.Context, key string) (store.Record, error) {
	text, err := json.Marshal(a.value)
	return store.Record{Key: key, Value: text, Version: 1}, err
}

// view shows one VM.
type view struct{ vm fleet.VM }

func (v view) VM(fleet.VMName) (store.Entry[fleet.VM], bool) {
	return store.Entry[fleet.VM]{Name: string(v.vm.Name), Version: 1, Value: v.vm}, true
}

func (v view) VMsOf(fleet.HostName) []store.Entry[fleet.VM] { return nil }

func (v view) Moving(fleet.VMName, fleet.HostName) bool { return false }

func (v view) Knows(int64) error { return nil }

// hosts is one session of a host, with a queue of commands.
type hosts struct {
	session uint64
	queue   chan *godwitv1.Command
}

func newHosts(room int) *hosts {
	return &hosts{session: 1, queue: make(chan *godwitv1.Command, room)}
}

func (h *hosts) Session(fleet.HostName) uint64 { return h.session }

func (h *hosts) Send(_ fleet.HostName, command *godwitv1.Command) error {
	select {
	case h.queue <- command:
		return nil
	default:
		return &fleet.Error{Code: fleet.Exhausted}
	}
}

func (h *hosts) SendIn(session uint64, host fleet.HostName, command *godwitv1.Command) error {
	if session != h.session {
		return &fleet.Error{Code: fleet.Unavailable}
	}
	return h.Send(host, command)
}

func (h *hosts) End(fleet.HostName, error) { h.session++ }

// oneVM is the life of a VM that never changes.
func oneVM(vm fleet.VM, h *hosts) *Lifecycle {
	return New(Config{
		Tables: Tables{
			VMs:   store.NewTable[fleet.VM](always{value: vm}, "vms"),
			Stops: store.NewTable[StopOrder](always{value: StopOrder{Sequence: 7}}, "stops"),
		},
		Records: view{vm}, Hosts: h, Log: slog.New(slog.DiscardHandler),
	})
}

// web1 is a VM of host h1.
func web1(phase fleet.VMPhase) fleet.VM {
	return fleet.VM{Name: "web1", Phase: phase, Owner: fleet.Owner{Host: "h1", Epoch: 1}}
}

// A command that could not be sent is sent when that is possible again, though
// nothing changes; and once only.
func TestCommandsThatHadToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHosts(1)
		if err := h.Send("h1", &godwitv1.Command{}); err != nil {
			t.Fatal(err)
		}
		l := oneVM(web1(fleet.VMStarting), h)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go l.Run(ctx)
		l.Changed("web1")
		synctest.Wait()
		<-h.queue
		select {
		case command := <-h.queue:
			if command.GetStartInstance() == nil {
				t.Errorf("got %v", command)
			}
		case <-time.After(lookAgainEvery + time.Millisecond): // of the bubble's clock
			t.Fatal("the command was not sent again")
		}
		select {
		case command := <-h.queue:
			t.Errorf("another command: %v", command)
		case <-time.After(3 * lookAgainEvery):
		}
	})
}

// A stop is sent again for as long as the VM is stopping: its host may not have been
// able to carry it out, and have kept silent. A start is not.
func TestStopIsSentAgain(t *testing.T) {
	for phase, again := range map[fleet.VMPhase]bool{fleet.VMStarting: false, fleet.VMStopping: true} {
		synctest.Test(t, func(t *testing.T) {
			h := newHosts(1)
			l := oneVM(web1(phase), h)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go l.Run(ctx)
			l.Changed("web1")
			first := <-h.queue
			for range 2 {
				select {
				case command := <-h.queue:
					if !again || command.GetSequence() != first.GetSequence() {
						t.Errorf("%s: got %v after %v", phase, command, first)
					}
				case <-time.After(stopAgainEvery + time.Millisecond):
					if again {
						t.Fatal("it was not sent again")
					}
				}
			}
		})
	}
}

// meanwhile is a store in which something happens while a VM is read.
type meanwhile struct {
	always
	does func()
}

func (m meanwhile) Get(ctx context.Context, key string) (store.Record, error) {
	m.does()
	return m.always.Get(ctx, key)
}

// A start is sent into the session in which it was found to be due, and not into
// one that began meanwhile: the end of the first may be recorded by now.
func TestStartIsOfOneSession(t *testing.T) {
	h, vm := newHosts(1), web1(fleet.VMStarting)
	l := oneVM(vm, h)
	l.Tables.VMs = store.NewTable[fleet.VM](meanwhile{always{value: vm}, func() { h.session++ }}, "vms")
	if err := l.tell(t.Context(), "h1", "web1"); !store.Passes(err) {
		t.Errorf("told: %v", err)
	}
	if len(h.queue) > 0 {
		t.Errorf("sent: %v", <-h.queue)
	}
}
