package migration

import (
	"slices"
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

// lose gives what is left of m when a host is declared lost.
func lose(m Migration, host fleet.HostName) (Migration, Verdict) {
	e := event(m, HostLost)
	e.From = string(host)
	next, _, verdict := Step(m, e)
	return next, verdict
}

// Whatever happens before or after, nobody waits for a host that is lost, and a
// migration that has lost both is over.
func TestNobodyWaitsForLostHosts(t *testing.T) {
	walk(t, func(m, next Migration, kind EventKind) {
		for _, effect := range next.Pending {
			if next.isLost(effect.Host) {
				t.Errorf("%s in %s: %s waits for %s, which is lost", kind, m.State, effect.Kind, effect.Host)
			}
		}
		if next.SourceLost && next.TargetLost && (!next.Over() || next.Locked() || !next.Down()) {
			t.Errorf("%s in %s: without its hosts it is %s, locked %v, down %v, pending %v",
				kind, m.State, next.State, next.Locked(), next.Down(), next.Pending)
		}
		if kind != HostLost && (next.SourceLost != m.SourceLost || next.TargetLost != m.TargetLost) {
			t.Errorf("%s in %s says that a host is lost", kind, m.State)
		}
	})
}

// A source is told to run only while nobody else may have, and no instance is
// told to run once its VM is given up.
func TestNoneRunsOnceItsVMIsDown(t *testing.T) {
	walk(t, func(m, next Migration, kind EventKind) {
		for _, effect := range next.Pending {
			runs := effect.Kind == RunTarget || effect.Kind == ResumeSource
			if runs && next.Down() && !next.Locked() {
				t.Errorf("%s in %s: %s on %s, of a VM that may be started elsewhere", kind, m.State, effect.Kind, effect.Host)
			}
		}
		if m.Down() && !m.Locked() && (!next.Down() || next.Locked()) {
			t.Errorf("%s in %s: a VM that was given up is taken up again", kind, m.State)
		}
	})
}

func TestLostHosts(t *testing.T) {
	type end struct {
		state State
		owner fleet.HostName
		down  bool
	}
	ends := map[State]map[fleet.HostName]end{ // at once, before the other host has answered
		Planned:       {"h1": {Aborted, "h1", true}, "h2": {Aborted, "h1", false}},
		Preparing:     {"h1": {RollingBack, "h1", true}, "h2": {Aborted, "h1", false}},
		Copying:       {"h1": {Switching, "h1", true}, "h2": {RollingBack, "h1", false}},
		Switching:     {"h1": {Switching, "h1", true}, "h2": {RollingBack, "h1", false}},
		Settling:      {"h1": {Settling, "h2", false}, "h2": {NeedsOperator, "h2", true}},
		RollingBack:   {"h1": {RollingBack, "h1", true}, "h2": {RollingBack, "h1", false}},
		NeedsOperator: {"h1": {RollingBack, "h1", true}, "h2": {NeedsOperator, "h1", false}},
	}
	for _, state := range States() {
		for _, host := range []fleet.HostName{"h1", "h2"} {
			m := sample(t, state)
			next, verdict := lose(m, host)
			if m.Over() { // the VM's record is not its own any more
				if verdict != Late {
					t.Errorf("%s lost when it is over (%s): %s", host, state, verdict)
				}
				continue
			}
			if lostSource := host == next.Source; next.SourceGone != lostSource {
				t.Errorf("%s lost in %s: the source is gone: %v", host, state, next.SourceGone)
			}
			if got := (end{next.State, next.Owner().Host, next.Down()}); got != ends[state][host] {
				t.Errorf("%s lost in %s: %v, want %v", host, state, got, ends[state][host])
			}
			if _, again := lose(next, host); again != Late {
				t.Errorf("%s lost again in %s: %s", host, state, again)
			}
			if _, other := lose(m, "h3"); other != Late {
				t.Errorf("a host that has no part is lost in %s: %s", state, other)
			}
		}
	}
}

// The forwarding of a VM that is down has no end but the removal of its source,
// which is told once.
func TestLostTargetReleasesTheSourceOnce(t *testing.T) {
	m := sample(t, Settling)
	for _, kind := range []EventKind{TargetRunning, SourceRetired, AddressesKnown, TimerFired, ""} {
		next, _ := lose(m, "h2")
		releases := slices.DeleteFunc(slices.Clone(next.Pending), func(e Effect) bool { return e.Kind != ReleaseSource || e.Host != "h1" })
		if len(releases) != 1 {
			t.Errorf("before %s: pending %v", kind, next.Pending)
		}
		if kind != "" {
			m, _ = mustStep(t, m, kind)
		}
	}
	released, _ := mustStep(t, m, SourceReleased)
	if next, _ := lose(released, "h2"); len(next.Pending) != 0 || next.Locked() {
		t.Errorf("after it was released: pending %v, locked %v", next.Pending, next.Locked())
	}
}
