package server

import (
	"context"
	"log/slog"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// behind is the life cycle as it is while the watch of the store is silent: it
// reads and writes the store, and its mirror stays as it is now, until that is
// loaded again.
func (f *testFleet) behind() (*lifecycle.Lifecycle, *mirror) {
	f.t.Helper()
	silent := newMirror(f.server.tables, f.server.log)
	if _, err := silent.load(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	return newLifecycle(f.server.tables, silent, f.server.hub, f.server.log), silent
}

func (fl *flight) instance(vm *godwitv1.VM, epoch uint64, state string) *godwitv1.Report {
	return &godwitv1.Report{Subject: vm.GetName(), Epoch: epoch, Event: &godwitv1.Report_Instance{Instance: &godwitv1.InstanceReport{
		Vm: vm.GetName(), Uid: vm.GetUid(), Epoch: epoch, State: state, Migration: fl.id,
	}}}
}

// A migration was taken back, of which the mirror has never heard. Its source is
// older than the owner, and the only instance.
func TestSourceThatRunsOnIsNotStale(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	vm := f.running(h1, "web1")
	late, _ := f.behind()
	fl := f.depart(h1, h2, "web1", testPolicy())
	fl.to(inRun)
	fl.say(h1, nil, &godwitv1.Report{Event: &godwitv1.Report_SourceRanOn{SourceRanOn: &godwitv1.SourceRanOn{Cause: "nobody decided"}}})
	fl.await(migration.RollingBack)
	fl.next(h1, "resume_source")
	f.checkPlace("web1", fleet.Owner{Host: "h1", Epoch: 3}, fl.id, "h1", "h2")
	if err := late.Report(t.Context(), "h1", fl.instance(vm, 1, lifecycle.Running)); err != nil {
		t.Error(err)
	}
	f.settled(h1) // nothing else came
}

// A source that has ended forwards until the migration has settled, though the
// mirror has never heard of that.
func TestSourceThatForwardsIsLeft(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	vm := f.running(h1, "web1")
	late, silent := f.behind()
	fl := f.depart(h1, h2, "web1", testPolicy())
	fl.to(inRetire)
	fl.next(h1, "retire_source")
	if err := late.Report(t.Context(), "h1", fl.instance(vm, 1, lifecycle.Exited)); err != nil {
		t.Error(err)
	}
	if err := late.Look(t.Context(), "web1"); !store.Passes(err) {
		t.Errorf("looked at with an old mirror: %v", err)
	}
	if _, err := silent.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := late.Look(t.Context(), "web1"); err != nil {
		t.Error(err)
	}
	f.settled(h1) // nothing else came
}

// stuck is a log whose writer waits at a message until it is released.
type stuck struct {
	slog.Handler
	at      string
	reached chan<- struct{}
	release <-chan struct{}
}

func (s stuck) Handle(_ context.Context, line slog.Record) error {
	if line.Message == s.at {
		select {
		case s.reached <- struct{}{}:
		default:
		}
		<-s.release
	}
	return nil
}

// A host's session begins when the mirror has what was stored before: what the
// host has is judged by that.
func TestSessionsWaitForTheMirror(t *testing.T) {
	t.Parallel()
	reached, release := make(chan struct{}, 1), make(chan struct{})
	f := newFleet(t, func(config *Config) {
		config.Logger = slog.New(stuck{slog.NewTextHandler(t.Output(), nil), "a record cannot be read", reached, release})
	})
	f.join("h2") // so the server has read what there was, and serves
	if _, err := f.store.Commit(t.Context(), nil, store.Put("networks/broken", []byte("{"))); err != nil {
		t.Fatal(err)
	}
	<-reached
	_, err := f.tryJoin("h1")
	close(release)
	if fleet.CodeOf(err) != fleet.Unavailable || fleet.HintOf(err) == "" {
		t.Errorf("while the mirror is behind: %v, hint %q", err, fleet.HintOf(err))
	}
	f.join("h1")
}

func TestMirrorReaches(t *testing.T) {
	m := newMirror(tables{}, nil)
	reached := make(chan error, 1)
	go func() { reached <- m.reach(t.Context(), 7) }()
	for revision := int64(1); revision <= 7; revision++ {
		select {
		case err := <-reached:
			t.Fatalf("before revision %d: %v", revision, err)
		default:
		}
		m.mu.Lock()
		m.advance(position{revision: revision})
		m.mu.Unlock()
	}
	select {
	case err := <-reached:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("it still waits")
	}
}
