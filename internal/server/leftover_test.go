package server

import (
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// A target was said to have ended, before it was started for good. When the
// migration is over it is the VM, and not what an ended one has left.
func TestNothingOfTheOwnerIsLeftOver(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	fl := f.fly(h1, h2, "web1", testPolicy())
	prepare := fl.next(h2, "prepare_target")
	ended := func() { h2.report(&godwitv1.Command{Epoch: 2}, "web1", "exited", "") }
	ended()
	fl.say(h2, prepare, usualAnswer("prepare_target"))
	fl.answer(h1, "start_copy")
	fl.mustCommit()
	fl.answer(h2, "run_target")
	fl.answer(h1, "retire_source")
	fl.answer(h1, "release_source")
	fl.answer(h2, "finish_target")
	fl.await(migration.Succeeded)
	f.settled(h2) // it gets no command but what that needs
	f.checkPlace("web1", fleet.Owner{Host: "h2", Epoch: 2}, "", "h2")

	ended() // and now it has
	f.awaitPhase("web1", fleet.VMStopped)
	if forget := h2.command().GetForgetInstance(); forget.GetEpoch() != 2 || !forget.GetEnded() {
		t.Errorf("command %v, want to remove what web1 has left", forget)
	}
}
