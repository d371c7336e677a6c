package lifecycle

import (
	"context"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// A restored store has given up the migrations that it found under way, and has
// never heard of those that began after the backup. Their hosts still take part
// in them: the source may stand still with a closed gate, or runs on but as one
// of which nobody knows yet; the target waits for a commit that nobody can give.
// So does a target whose host was declared lost, and is back when it is over, and
// a source by an order that came when it was.

// endStray ends a host's part in such a migration. It is looked for whenever a
// host connects, until the host says that it has none.
func (l *Lifecycle) endStray(ctx context.Context, host fleet.HostName, said *godwitv1.InstanceReport) error {
	ctx, cancel := l.Runtime.Within(ctx, reportWithin)
	defer cancel()
	if said.GetMigration() == "" {
		return nil
	}
	known, over, err := l.knowsMigration(ctx, said.GetMigration())
	if err != nil || known && !over {
		return err
	}
	entry, err := l.Tables.VMs.Get(ctx, said.GetVm())
	vm := entry.Value
	if fleet.CodeOf(err) == fleet.NotFound || vm.Migration != "" || string(vm.UID) != said.GetUid() {
		return nil
	}
	if err != nil {
		return err
	}
	owner := vm.Owner == fleet.Owner{Host: host, Epoch: fleet.Epoch(said.GetEpoch())}
	switch state := said.GetState(); {
	case owner && (state == Paused || state == Running && !known):
		l.Log.Info("a VM goes on alone after a migration that is over, or not known any more", "host", host, "vm", vm.Name, "migration", said.GetMigration())
		err := l.Hosts.Send(host, &godwitv1.Command{
			Subject: said.GetMigration(), Epoch: said.GetEpoch(), Sequence: sequenceForget, Uid: said.GetUid(),
			Op: &godwitv1.Command_ResumeSource{ResumeSource: &godwitv1.ResumeSource{Vm: said.GetVm()}},
		})
		if err != nil { // it has no session any more, and says the same in its next one
			l.Log.Warn("a VM was not told to go on alone", "host", host, "vm", vm.Name, "error", err)
		}
	case !owner && state == Incoming:
		moving, err := l.moving(ctx, vm.Name, host)
		if err != nil || moving {
			return err
		}
		l.Log.Info("the target of a migration that is over, or not known any more, is removed", "host", host, "vm", vm.Name, "migration", said.GetMigration())
		l.forget(host, &godwitv1.ForgetInstance{Vm: said.GetVm(), Epoch: said.GetEpoch(), Uid: said.GetUid(), Migration: said.GetMigration()})
	}
	return nil
}

// knowsMigration: it is among the records, and was not given up with a backup; and
// whether nobody has anything left to do for it.
func (l *Lifecycle) knowsMigration(ctx context.Context, id string) (known, over bool, err error) {
	entry, err := l.Tables.Migrations.Get(ctx, id)
	if fleet.CodeOf(err) == fleet.NotFound {
		return false, false, nil
	}
	return !entry.Value.Abandoned, entry.Value.Over(), err
}
