package server

import (
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
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
	h1.answer(start, vm, lifecycle.Running)
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
	late, _ := f.behind()
	h1.report(start, "web1", "exited", "the disk cannot be reached")
	f.awaitPhase("web1", fleet.VMFailed)
	if err := late.Look(t.Context(), "web1"); err != nil {
		t.Error(err)
	}
	f.create(&godwitv1.CreateVMRequest{Name: "web2", Spec: smallSpec()})
	if next := h1.command(); next.GetSubject() != "web2" {
		t.Errorf("the command is %v, want to start web2", next)
	}
}

// A server that leads no more, and does not know it, records nothing of what hosts
// have answered it: the next one has told them again.
func TestAnswersToAnEarlierLeader(t *testing.T) {
	t.Parallel()
	one, _ := newReplicas(t, 1)
	h1 := one.join("h1")
	one.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec()})
	h1.command()
	earlier, _ := one.behind()
	own, _, _ := one.server.leader.now()
	if len(own.held) == 0 {
		t.Fatal("a term has no conditions")
	}
	earlier.Begin(own.held)
	next := one.succeeded()
	h1 = next.join("h1")
	start := h1.command()
	ended := instanceReport("web1", lifecycle.Exited, "the disk cannot be reached", startSequence)
	if err := earlier.Report(t.Context(), "h1", ended); err != nil {
		t.Error(err)
	}
	if vm := next.vm("web1"); vm.GetPhase() != string(fleet.VMStarting) {
		t.Errorf("by an earlier leader, what was started again is %s", vm.GetPhase())
	}
	h1.report(start, "web1", lifecycle.Running, "")
	next.awaitPhase("web1", fleet.VMRunning)
}
