package server

import (
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// The commit of a source whose QEMU may run the guest on by itself is answered
// when that has sent everything, and refused when its copy fails instead.
func TestCommitWaitsForAnUnheldSource(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	old := func(o *agentOptions) {
		o.hello = func(h *godwitv1.Hello) {
			h.Host.Cpus, h.Host.MemoryBytes, h.Host.MigrationCapabilities = 100, uint64(100*fleet.GiB), nil
		}
	}
	h1, h2 := f.join("h1", old), f.join("h2", roomy)
	type answer struct {
		response *godwitv1.CommitResponse
		err      error
	}
	asks := func(vm string) (*flight, chan answer) {
		fl := f.fly(h1, h2, vm, testPolicy())
		fl.to(inSwitch)
		answers := make(chan answer, 1)
		go func() {
			response, err := fl.commit("h2", 1)
			answers <- answer{response, err}
		}()
		fl.awaitMigration(fl.id, "asked for the commit", (*godwitv1.Migration).GetTargetAsked)
		f.checkPlace(vm, fleet.Owner{Host: "h1", Epoch: 1}, fl.id, "h1", "h2")
		return fl, answers
	}

	fl, answers := asks("web1")
	fl.measure()
	if got := <-answers; got.err != nil || got.response.GetEpoch() != 2 {
		t.Errorf("the commit got %v, %v", got.response, got.err)
	}
	fl.finish(inRun)
	fl.atTarget(t)

	fl, answers = asks("web2")
	fl.say(h1, nil, sourceFails("the stream broke", false))
	if got := <-answers; fleet.CodeOf(got.err) != fleet.Conflict {
		t.Errorf("the commit got %v, %v", got.response, got.err)
	}
	fl.answer(h1, "resume_source")
	fl.answer(h2, "release_target")
	fl.await(migration.Aborted)
	fl.atSource(t)
}
