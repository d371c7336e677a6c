package server

import (
	"context"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// answer is report, as an agent says it that knows the VM's uid.
func (a *fakeAgent) answer(command *godwitv1.Command, vm *godwitv1.VM, state string) {
	a.say(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Report{Report: &godwitv1.Report{
		Subject: vm.GetName(), Epoch: command.GetEpoch(), Sequence: command.GetSequence(), At: timestamppb.Now(),
		Event: &godwitv1.Report_Instance{Instance: &godwitv1.InstanceReport{
			Vm: vm.GetName(), Uid: vm.GetUid(), Epoch: command.GetEpoch(), State: state,
		}},
	}}})
}

// A start that was said to have failed has not, in the end: a second one of the
// same command has worked. What runs is removed before there is another.
func TestStartedAfterAll(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec(), Host: "h1"})
	start := h1.command()
	h1.report(start, "web1", "exited", "the disk cannot be reached")
	vm := f.awaitPhase("web1", fleet.VMFailed)
	h1.answer(start, vm, instanceRunning)
	if forget := h1.command().GetForgetInstance(); forget.GetEpoch() != 1 || forget.GetUid() != vm.GetUid() || forget.GetEnded() {
		t.Errorf("the command is %v, want to remove what runs", forget)
	}
	if _, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1", Host: "h2"}); err != nil {
		t.Fatal(err)
	}
	if epoch := h2.command().GetEpoch(); epoch != 3 {
		t.Errorf("it starts at epoch %d, want 3: 2 is that of nothing", epoch)
	}
}

// What a host is to do is read from the store. The mirror does not know yet that
// the start has failed; sent again, it would work.
func TestStartIsNotSentAgainByAnOldMirror(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec()})
	start := h1.command()
	late := f.behind()
	h1.report(start, "web1", "exited", "the disk cannot be reached")
	f.awaitPhase("web1", fleet.VMFailed)
	if err := late.look(t.Context(), "web1"); err != nil {
		t.Error(err)
	}
	f.create(&godwitv1.CreateVMRequest{Name: "web2", Spec: smallSpec()})
	if next := h1.command(); next.GetSubject() != "web2" {
		t.Errorf("the command is %v, want to start web2", next)
	}
}

// A start is sent into the session in which it was found to be due, and not into
// one that began meanwhile: the end of the first may be recorded by now.
func TestStartIsOfOneSession(t *testing.T) {
	h := newHub()
	older, newer := newSession("h1", 0), newSession("h1", 0)
	if err := h.open(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	l := newLifecycle(tables{vms: store.NewTable[fleet.VM](meanwhile{does: func() {
		h.close(older)
		if err := h.open(t.Context(), newer); err != nil {
			t.Error(err)
		}
	}}, "vms")}, nil, h, nil)
	if err := l.tell(t.Context(), "h1", "web1"); !store.Passes(err) {
		t.Errorf("told: %v", err)
	}
	if len(older.queue)+len(newer.queue) > 0 {
		t.Errorf("%d and %d commands were sent", len(older.queue), len(newer.queue))
	}
}

// meanwhile is a store in which web1 is starting, and something happens while
// that is read.
type meanwhile struct {
	store.Records
	does func()
}

func (m meanwhile) Get(ctx context.Context, key string) (store.Record, error) {
	m.does()
	return always{value: fleet.VM{Name: "web1", Phase: fleet.VMStarting, Owner: fleet.Owner{Host: "h1", Epoch: 1}}}.Get(ctx, key)
}

// A server that leads no more, and does not know it, records nothing of what hosts
// have answered it: the next one has told them again.
func TestAnswersToAnEarlierLeader(t *testing.T) {
	t.Parallel()
	one, _ := newReplicas(t, 1)
	h1 := one.join("h1")
	one.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec()})
	h1.command()
	earlier := one.behind()
	earlier.begin(one.server.lifecycle.leads)
	if len(earlier.leads) == 0 {
		t.Fatal("a term has no conditions")
	}
	next := one.succeeded()
	h1 = next.join("h1")
	start := h1.command()
	said := &godwitv1.InstanceReport{Vm: "web1", Epoch: 1, State: instanceExited, Cause: "the disk cannot be reached"}
	if err := earlier.observe(t.Context(), "h1", said, sequenceStart); err == nil {
		t.Error("an earlier leader has recorded the end of what was started again")
	}
	h1.report(start, "web1", instanceRunning, "")
	next.awaitPhase("web1", fleet.VMRunning)
}
