package e2e

import (
	"context"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
	"godwit.dev/godwit/internal/migration"
)

// testCancel cancels in the middle of the copy, when the source has stopped,
// and when the target has everything and lacks only the commit. In the last
// two the target's agent is held back until the cancel is decided, so that the
// commit cannot be faster.
func testCancel(t *testing.T, f *fleetlab.Fleet) {
	for _, test := range []struct {
		name    string
		guest   fleetlab.GuestConfig
		traffic probe.UDPConfig
	}{
		{"plain", fleetlab.GuestConfig{}, probe.UDPConfig{Rate: 500}},
		{"fast", fleetlab.GuestConfig{}, probe.UDPConfig{Rate: 5000}},
		{"large", fleetlab.GuestConfig{}, probe.UDPConfig{Rate: 500, Size: 1472}},
		{"ports", fleetlab.GuestConfig{Ports: 2}, probe.UDPConfig{Rate: 500}},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := boot(t, f, test.guest)
			t.Run("copying", func(t *testing.T) {
				c := call(t, f, g, test.traffic)
				demand(t, f, g, cancelCopy(t, f, g), "aborted")
				c.end(t)
			})
			for _, at := range []string{fleetlab.SourceStopped, fleetlab.AllSent} {
				t.Run(at, func(t *testing.T) {
					c := call(t, f, g, test.traffic)
					demand(t, f, g, cancelSwitch(t, f, g, at), "aborted")
					c.end(t)
				})
			}
		})
	}
	t.Run("race", func(t *testing.T) { testCancelRace(t, f) })
}

func cancelCopy(t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest) *godwitv1.Migration {
	t.Helper()
	return duringA(t, f, g, crawling, "copying", func(m *godwitv1.Migration) {
		if _, err := f.API.Migration.Cancel(t.Context(), &godwitv1.CancelMigrationRequest{Id: m.GetId(), Reason: "a test"}); err != nil {
			t.Error(err)
		}
	})
}

// cancelSwitch cancels in the hand-over, and demands that it was there: that the
// source had stopped, and that frames came back if they waited at the target
// for all the time that QEMU took for the devices.
func cancelSwitch(t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest, at string) *godwitv1.Migration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	m, err := f.CancelSwitch(ctx, &godwitv1.CreateMigrationRequest{Vm: g.Name, Target: "h2"}, at)
	if err != nil {
		t.Fatalf("%v\n%s", err, story(m))
	}
	before := ""
	for _, entry := range m.GetStory() {
		if entry.GetEvent() == string(migration.CancelAsked) {
			break
		}
		before = entry.GetState()
	}
	if before != "switching" {
		t.Errorf("it was cancelled while it was %q\n%s", before, story(m))
	}
	if why := m.GetOutcome().GetReturnError(); why != "" {
		t.Errorf("not all frames returned: %s", why)
	}
	frames := m.GetOutcome().GetFramesReturned()
	if at == fleetlab.AllSent && frames == 0 {
		t.Errorf("no frame returned from the target\n%s", story(m))
	}
	t.Logf("%d frames returned", frames)
	return m
}

// testCancelRace cancels when the source has stopped and lets the target ask
// for the commit meanwhile: whichever is first, the client loses nothing.
func testCancelRace(t *testing.T, f *fleetlab.Fleet) {
	g := boot(t, f, fleetlab.GuestConfig{})
	c := call(t, f, g, probe.UDPConfig{})
	var late error
	m := during(t, f, g, "switching", func(m *godwitv1.Migration) {
		_, late = f.API.Migration.Cancel(t.Context(), &godwitv1.CancelMigrationRequest{Id: m.GetId(), Reason: "a test"})
	})
	switch {
	case late == nil:
		t.Logf("the cancel was faster; %d frames returned", m.GetOutcome().GetFramesReturned())
		demand(t, f, g, m, "aborted")
	case fleet.CodeOf(late) == fleet.Conflict:
		t.Logf("the commit was faster: %v", late)
		demand(t, f, g, m, "succeeded")
	default:
		t.Errorf("cancel: %v", late)
	}
	c.end(t)
}
