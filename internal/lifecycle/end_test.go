package lifecycle

import (
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

func TestEndOfInstances(t *testing.T) {
	cases := []struct {
		name         string
		phase        fleet.VMPhase
		state, cause string
		want         fleet.VMPhase
		wantCause    string
	}{
		{"stopped as asked", fleet.VMStopping, "exited", "killed", fleet.VMStopped, ""},
		{"gone when it was to be stopped", fleet.VMStopping, "absent", "", fleet.VMStopped, ""},
		{"guest powered off", fleet.VMRunning, "exited", "guest-shutdown", fleet.VMStopped, "the guest powered itself off"},
		{"ended in order", fleet.VMRunning, "exited", "", fleet.VMStopped, "the guest powered itself off"},
		{"crashed", fleet.VMRunning, "exited", "signal: killed", fleet.VMFailed, "signal: killed"},
		{"vanished", fleet.VMRunning, "absent", "", fleet.VMFailed, "host h1 has no instance of it any more"},
		{"never ran", fleet.VMStarting, "exited", "", fleet.VMFailed, "its instance ended on host h1 before it ran"},
	}
	for _, test := range cases {
		phase, cause := afterEnd(test.phase, "h1", &godwitv1.InstanceReport{State: test.state, Cause: test.cause})
		if phase != test.want || cause != test.wantCause {
			t.Errorf("%s: %s, %q; want %s, %q", test.name, phase, cause, test.want, test.wantCause)
		}
	}
}

// The end of an older instance, heard of late, does not replace a newer one's.
func TestNewestEndIsHeld(t *testing.T) {
	l := New(Config{})
	for _, test := range []struct {
		host        fleet.HostName
		epoch, want uint64
	}{{"h1", 1, 1}, {"h2", 2, 2}, {"h1", 1, 2}, {"h1", 3, 3}} {
		l.hold(test.host, &godwitv1.InstanceReport{Vm: "web1", Epoch: test.epoch})
		if held := l.held["web1"].report.GetEpoch(); held != test.want {
			t.Errorf("after the end of epoch %d that of %d is held, want %d", test.epoch, held, test.want)
		}
	}
}

// A host that does not say of which boot it is proves nothing.
func TestNoBootProvesNothing(t *testing.T) {
	for _, test := range []struct {
		before, now string
		want        bool
	}{{"", "b", false}, {"a", "", false}, {"a", "a", false}, {"a", "b", true}} {
		if got := rebooted(fleet.Host{BootID: test.before}, &godwitv1.Hello{BootId: test.now}); got != test.want {
			t.Errorf("from boot %q to %q: %t", test.before, test.now, got)
		}
	}
}
