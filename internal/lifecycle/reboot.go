package lifecycle

import (
	"context"
	"fmt"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// A VM that should run on a host may be missing there. Only a reboot proves that
// its instance is gone; that the agent does not know it does not. A reboot shows
// in one Hello only, since the next is compared with its boot id. So the commit
// that stores the boot id stores with it which instances the reboot has ended, and
// every later Hello takes up those of which no VM's record tells yet: its server
// may have died, or a migration locked the VM.

func rebooted(before fleet.Host, hello *godwitv1.Hello) bool {
	return before.BootID != "" && hello.GetBootId() != "" && before.BootID != hello.GetBootId()
}

func rebootCause(host fleet.HostName) string { return "host " + string(host) + " was rebooted" }

// Arrival is what follows from a host's record when a session begins.
type Arrival struct {
	Rebooted bool
	Ended    []fleet.Instance // by reboots, and no VM's record tells of it yet
}

// Arrival gives it. before is the host's record from before hello; what has ended
// is to be stored in the commit that stores the new boot id.
func (l *Lifecycle) Arrival(ctx context.Context, before fleet.Host, hello *godwitv1.Hello) (at Arrival, err error) {
	at.Rebooted = rebooted(before, hello)
	suspects := l.named
	if at.Rebooted {
		suspects = l.all
	}
	vms, err := suspects(ctx, before.Ended)
	for _, vm := range vms {
		if vm.Owner.Host == before.Name && vm.Phase == fleet.VMRunning && !hasInstance(hello, vm) {
			at.Ended = append(at.Ended, instanceOf(vm))
		}
	}
	return at, err
}

func instanceOf(vm fleet.VM) fleet.Instance {
	return fleet.Instance{VM: vm.Name, UID: vm.UID, Epoch: vm.Owner.Epoch}
}

// named reads the VMs of instances that are still their newest.
func (l *Lifecycle) named(ctx context.Context, instances []fleet.Instance) (vms []fleet.VM, err error) {
	for _, one := range instances {
		entry, err := l.Tables.VMs.Get(ctx, string(one.VM))
		switch {
		case fleet.CodeOf(err) == fleet.NotFound:
		case err != nil:
			return nil, err
		case instanceOf(entry.Value) == one:
			vms = append(vms, entry.Value)
		}
	}
	return vms, nil
}

// all reads the VMs of all instances.
func (l *Lifecycle) all(ctx context.Context, _ []fleet.Instance) (vms []fleet.VM, err error) {
	records, _, err := l.Tables.Store.All(ctx, l.Tables.VMs.Prefix())
	for _, record := range records {
		entry, err := l.Tables.VMs.Decode(record)
		if err != nil { // it must not keep the host from coming back
			l.Log.Error("a VM's record cannot be read", "key", record.Key, "error", err)
			continue
		}
		vms = append(vms, entry.Value)
	}
	return vms, err
}

// unknownTo is the cause of a VM that should run on a host that does not know it,
// while no reboot proves that it has ended.
func unknownTo(host fleet.HostName, vm fleet.VMName) string {
	return fmt.Sprintf("host %s does not know of it; to have the host look and its end recorded: godwit vm stop %s", host, vm)
}

// unknown says in a VM's record that its host does not know it. What a migration
// holds is the migration's. The cause goes as soon as the host knows the VM.
func (l *Lifecycle) unknown(ctx context.Context, is fleet.VM) error {
	host, cause := is.Owner.Host, unknownTo(is.Owner.Host, is.Name)
	for range store.MaxConflicts {
		entry, err := l.Tables.VMs.Get(ctx, string(is.Name))
		if err != nil {
			return err
		}
		vm := entry.Value
		if vm.Owner != is.Owner || vm.Phase != fleet.VMRunning || vm.Migration != "" || vm.Cause == cause {
			return nil
		}
		vm.Cause = cause
		err = l.commit(ctx, store.If(l.Tables.VMs.At(entry.Name, entry.Version)), l.Tables.VMs.Put(entry.Name, vm))
		if err == nil {
			l.Log.Warn("a host does not know of a VM that should run there", "host", host, "vm", vm.Name)
		}
		if fleet.CodeOf(err) != fleet.Conflict {
			return err
		}
	}
	return tooManyConflicts("take what a host has", is.Name)
}
