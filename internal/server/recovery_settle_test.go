package server

import (
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/store"
)

// Of a VM whose backup had it on h1 with epoch 5: where it is once the store is
// accepted. On the disk of a source that stands still its target may have written,
// so that it goes on only if the target is seen, and has not run.
func TestSettledVM(t *testing.T) {
	at := func(host fleet.HostName, epoch uint64, state string) sighting {
		return sighting{host, &godwitv1.InstanceReport{Vm: "web1", Uid: "u1", Epoch: epoch, State: state, Migration: "m1", QemuVersion: string(host)}}
	}
	other := sighting{"h9", &godwitv1.InstanceReport{Vm: "web1", Uid: "u0", Epoch: 99, State: lifecycle.Running}}
	unread := sighting{"h1", &godwitv1.InstanceReport{Vm: "web1", Epoch: 5, State: lifecycle.Running}}
	for name, test := range map[string]struct {
		seen []sighting
		want fleet.Owner
	}{
		"stands still, but for no migration": {[]sighting{{"h1", &godwitv1.InstanceReport{Vm: "web1", Uid: "u1", Epoch: 5, State: lifecycle.Paused}}}, fleet.Owner{Host: "h1", Epoch: 5}},
		"a stale one runs":                   {[]sighting{{"h2", &godwitv1.InstanceReport{Vm: "web1", Uid: "u1", Epoch: 4, State: lifecycle.Running}}}, fleet.Owner{Epoch: 5 + epochLift}},
		"it ran on, by the backup's target":  {[]sighting{at("h2", 4, lifecycle.Running)}, fleet.Owner{Host: "h2", Epoch: 4}},
		"none":                               {nil, fleet.Owner{Epoch: 5 + epochLift}},
		"of another VM":                      {[]sighting{other}, fleet.Owner{Epoch: 5 + epochLift}},
		"runs":                               {[]sighting{at("h1", 5, lifecycle.Running), other}, fleet.Owner{Host: "h1", Epoch: 5}},
		"is being started":                   {[]sighting{{"h1", &godwitv1.InstanceReport{Vm: "web1", Uid: "u1", Epoch: 7, State: lifecycle.Starting}}}, fleet.Owner{Host: "h1", Epoch: 7}},
		"ended":                              {[]sighting{at("h1", 7, lifecycle.Exited)}, fleet.Owner{Epoch: 7 + epochLift}},
		"the target waits":                   {[]sighting{at("h1", 5, lifecycle.Paused), at("h2", 6, lifecycle.Incoming)}, fleet.Owner{Host: "h1", Epoch: 5}},
		"the target runs":                    {[]sighting{at("h1", 5, lifecycle.Paused), at("h2", 6, lifecycle.Running)}, fleet.Owner{Host: "h2", Epoch: 6}},
		"the target has ended":               {[]sighting{at("h1", 5, lifecycle.Paused), at("h2", 6, lifecycle.Exited)}, fleet.Owner{Epoch: 6 + epochLift}},
		"the target is lost":                 {[]sighting{at("h1", 5, lifecycle.Paused)}, fleet.Owner{Epoch: 5 + epochLift}},
		"the target waits, another ended":    {[]sighting{at("h1", 5, lifecycle.Paused), at("h2", 6, lifecycle.Incoming), at("h3", 7, lifecycle.Exited)}, fleet.Owner{Epoch: 7 + epochLift}},
		"it runs after its target gave up":   {[]sighting{at("h1", 5, lifecycle.Running), at("h2", 6, lifecycle.Exited)}, fleet.Owner{Host: "h1", Epoch: 5}},
		"moved twice, the last one waits":    {[]sighting{at("h1", 5, lifecycle.Paused), at("h2", 6, lifecycle.Paused), at("h3", 7, lifecycle.Incoming)}, fleet.Owner{Host: "h2", Epoch: 6}},
		"moved twice, the last one is lost":  {[]sighting{at("h1", 5, lifecycle.Paused), at("h2", 6, lifecycle.Paused)}, fleet.Owner{Epoch: 6 + epochLift}},
		"an older one runs":                  {[]sighting{at("h1", 5, lifecycle.Running), at("h2", 6, lifecycle.Running)}, fleet.Owner{Host: "h2", Epoch: 6}},
		"its agent can't tell whose it is":   {[]sighting{unread}, fleet.Owner{Host: "h1", Epoch: 5}},
		"two of one epoch":                   {[]sighting{at("h1", 5, lifecycle.Running), at("h2", 5, lifecycle.Running)}, fleet.Owner{Epoch: 5 + epochLift}},
	} {
		t.Run(name, func(t *testing.T) {
			vm := fleet.VM{Name: "web1", UID: "u1", Phase: fleet.VMRunning, Migration: "m1", Owner: fleet.Owner{Host: "h1", Epoch: 5}, QEMU: fleet.InstanceQEMU{Version: "of the backup"}}
			got, change := settledVM(vm, test.seen)
			phase := fleet.VMRunning
			if test.want.Host == "" {
				phase = fleet.VMFailed
			}
			if got.Owner != test.want || got.Phase != phase || got.Migration != "" || (got.Cause == "") != (phase == fleet.VMRunning) {
				t.Errorf("%+v, phase %s, migration %q, cause %q; want %+v", got.Owner, got.Phase, got.Migration, got.Cause, test.want)
			}
			if by := got.QEMU.Version; by != "" && by != string(got.Owner.Host) {
				t.Errorf("it runs by the QEMU of %s", by)
			}
			if (change == "") != (got.Owner == vm.Owner) {
				t.Errorf("change %q", change)
			}
		})
	}
}

// The source of a migration that committed after the backup does not run on, if
// its target has ended or is given up: it is removed, and the VM starts anew.
func TestRestoreAfterCommit(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"the target has ended", "the target is lost"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := newFleet(t)
			h1 := before.join("h1", roomy)
			before.join("h2", roomy)
			vm := before.running(h1, "web1")
			backup := before.backup()
			f := before.restored(func(c store.Config) error { return Restore(t.Context(), backup, c) })
			has := func(epoch uint64, state string) func(*agentOptions) {
				return has(nil, &godwitv1.InstanceReport{Vm: "web1", Uid: vm.GetUid(), Epoch: epoch, State: state, Migration: "m-younger"})
			}
			f.awaitStill()
			f.refused("h1", has(1, lifecycle.Paused))
			lost := []string{"h2"}
			if name == "the target has ended" {
				f.refused("h2", has(2, lifecycle.Exited))
				lost = nil
			}
			if _, err := f.accept(lost...); err != nil {
				t.Fatal(describe(err))
			}
			checkForgets(t, f.join("h1", has(1, lifecycle.Paused)).command(), "web1", 1)
			if vm := f.vm("web1"); vm.GetPhase() != string(fleet.VMFailed) || vm.GetOwner().GetEpoch() <= 2 {
				t.Errorf("%v", vm)
			}
		})
	}
}
