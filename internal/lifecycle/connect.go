package lifecycle

import (
	"context"
	"slices"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// Connected compares what a host has with what the records say.
func (l *Lifecycle) Connected(ctx context.Context, host fleet.HostName, at Arrival, hello *godwitv1.Hello) {
	ctx = context.WithoutCancel(ctx)
	for _, one := range at.Ended {
		l.hold(host, &godwitv1.InstanceReport{
			Vm: string(one.VM), Uid: string(one.UID), Epoch: uint64(one.Epoch), State: Exited, Cause: rebootCause(host),
		})
	}
	for _, entry := range l.Records.VMsOf(host) {
		vm := entry.Value
		l.Changed(vm.Name)
		if vm.Phase != fleet.VMRunning || hasInstance(hello, vm) || slices.Contains(at.Ended, instanceOf(vm)) {
			continue
		}
		if !l.taken(host, &godwitv1.InstanceReport{Vm: entry.Name}, l.unknown(ctx, vm)) {
			return // the next Hello says all of it again
		}
	}
	for _, instance := range hello.GetInstances() {
		said := l.explained(host, instance, at.Rebooted)
		err := l.observe(ctx, host, said, 0)
		if err == nil {
			err = l.endStray(ctx, host, said)
		}
		if !l.taken(host, said, err) {
			return
		}
	}
}

// explained gives a cause to the end of a running instance that nobody has
// seen. Without one it would count as the guest's own powering off.
func (l *Lifecycle) explained(host fleet.HostName, said *godwitv1.InstanceReport, rebooted bool) *godwitv1.InstanceReport {
	entry, _ := l.Records.VM(fleet.VMName(said.GetVm()))
	if said.GetState() != Exited || said.GetCause() != "" || entry.Value.Phase != fleet.VMRunning {
		return said
	}
	cause := "it ended while host " + string(host) + " had no session"
	if rebooted {
		cause = rebootCause(host)
	}
	return &godwitv1.InstanceReport{
		Vm: said.GetVm(), Uid: said.GetUid(), Epoch: said.GetEpoch(), State: said.GetState(), Migration: said.GetMigration(),
		Cause: cause,
	}
}

func hasInstance(hello *godwitv1.Hello, vm fleet.VM) bool {
	return slices.ContainsFunc(hello.GetInstances(), func(i *godwitv1.InstanceReport) bool {
		return i.GetVm() == string(vm.Name) && fleet.Epoch(i.GetEpoch()) == vm.Owner.Epoch
	})
}
