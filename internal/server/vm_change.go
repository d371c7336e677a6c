package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/placement"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

func (v vmService) AddDisk(ctx context.Context, request *godwitv1.AddDiskRequest) (*godwitv1.AddDiskResponse, error) {
	return changeVM(ctx, v.server, "add disk", request, func(vm *godwitv1.VM) *godwitv1.AddDiskResponse {
		return &godwitv1.AddDiskResponse{Vm: vm}
	}, func(ctx context.Context, vm fleet.VM) (planned, error) {
		return v.server.planDisk(ctx, vm, request.GetDisk())
	})
}

func (v vmService) AddPort(ctx context.Context, request *godwitv1.AddPortRequest) (*godwitv1.AddPortResponse, error) {
	return changeVM(ctx, v.server, "add port", request, func(vm *godwitv1.VM) *godwitv1.AddPortResponse {
		return &godwitv1.AddPortResponse{Vm: vm}
	}, func(ctx context.Context, vm fleet.VM) (planned, error) {
		return v.server.planPort(ctx, vm, request.GetPort())
	})
}

func (v vmService) RemoveDisk(ctx context.Context, request *godwitv1.RemoveDiskRequest) (*godwitv1.RemoveDiskResponse, error) {
	return changeVM(ctx, v.server, "remove disk", request, func(vm *godwitv1.VM) *godwitv1.RemoveDiskResponse {
		return &godwitv1.RemoveDiskResponse{Vm: vm}
	}, func(_ context.Context, vm fleet.VM) (planned, error) {
		at := slices.IndexFunc(vm.Spec.Disks, func(d fleet.Disk) bool { return d.Name == request.GetDisk() })
		if at < 0 {
			return planned{}, noCard("remove disk", vm, "disk "+request.GetDisk())
		}
		if len(vm.Spec.Disks) == 1 && vm.Spec.Boot == nil {
			return planned{}, conflict("remove disk", vm, "it boots from its only disk, "+request.GetDisk(), "delete the VM if it is not wanted any more")
		}
		change, _ := vm.Spec.Removal(fleet.DiskSlot(vm.Spec.Disks[at].Slot, at))
		return planned{change: change}, nil
	})
}

func (v vmService) RemovePort(ctx context.Context, request *godwitv1.RemovePortRequest) (*godwitv1.RemovePortResponse, error) {
	return changeVM(ctx, v.server, "remove port", request, func(vm *godwitv1.VM) *godwitv1.RemovePortResponse {
		return &godwitv1.RemovePortResponse{Vm: vm}
	}, func(_ context.Context, vm fleet.VM) (planned, error) {
		at := slices.IndexFunc(vm.Spec.Ports, func(p fleet.Port) bool { return p.Name == request.GetPort() })
		if at < 0 {
			return planned{}, noCard("remove port", vm, "port "+request.GetPort())
		}
		change, _ := vm.Spec.Removal(fleet.PortSlot(vm.Spec.Ports[at].Slot, at))
		return planned{change: change}, nil
	})
}

// planned is a change of a VM's hardware, with what must hold and be stored for it.
type planned struct {
	change     fleet.Change
	epoch      fleet.Epoch // after which a volume is used, of a VM that is stopped
	conditions []store.Condition
	ops        []store.Op
}

// changeRequest is a request for such a change.
type changeRequest interface {
	creation
	GetName() string
	GetVersion() int64
}

// changeAnswer is how it is answered.
type changeAnswer interface {
	proto.Message
	GetVm() *godwitv1.VM
}

// changeVM changes the hardware of a VM: the record of one that is stopped; of one
// that runs it orders the change, which its host carries out.
func changeVM[A changeAnswer](
	ctx context.Context, s *Server, op string, request changeRequest, answer func(*godwitv1.VM) A, plan func(context.Context, fleet.VM) (planned, error),
) (A, error) {
	s.admission.Lock()
	defer s.admission.Unlock()
	change := func(r receipt) (none A, _ int64, _ error) {
		for range store.MaxConflicts {
			entry, err := s.changeable(ctx, op, request)
			if err != nil {
				return none, 0, err
			}
			wanted, err := plan(ctx, entry.Value)
			if err != nil {
				return none, 0, err
			}
			vm := s.tables.changed(entry.Value, &wanted)
			response := answer(wire.EncodeVM(vm, 0))
			free, kept, err := r.keep(response)
			if err != nil {
				return none, 0, err
			}
			revision, err := s.tables.store.Commit(ctx,
				slices.Concat(wanted.conditions, free, store.If(s.tables.vms.At(entry.Name, entry.Version))),
				slices.Concat(wanted.ops, kept, []store.Op{s.tables.vms.Put(entry.Name, vm)})...)
			if fleet.CodeOf(err) == fleet.Conflict {
				continue
			}
			if err == nil {
				s.log.Info("hardware is to change", "vm", entry.Name, "change", wanted.change, "phase", vm.Phase)
			}
			return response, revision, err
		}
		return none, 0, tooManyConflicts(op, "vm "+request.GetName())
	}
	stamp := func(response A, version int64) { response.GetVm().Version = version }
	return once(ctx, s.tables, op, request, answer(nil), stamp, change)
}

// changeable reads a VM whose hardware can be changed now.
func (s *Server) changeable(ctx context.Context, op string, request changeRequest) (store.Entry[fleet.VM], error) {
	entry, err := s.getVM(ctx, op, request.GetName())
	if err != nil {
		return entry, err
	}
	if err := checkVersion(op, "vm", entry, request.GetVersion()); err != nil {
		return entry, err
	}
	vm := entry.Value
	switch vm.Phase {
	case fleet.VMStarting, fleet.VMStopping:
		err := conflict(op, vm, "it is "+string(vm.Phase), "try again when that is over")
		err.RetryAfter = changeAgainIn
		return entry, err
	}
	if vm.Changing() {
		return entry, changing(op, vm)
	}
	_, err = s.migrations.pass(ctx, op, migration.ChangeVM, vm)
	return entry, err
}

// changed gives the VM's record with a change: ordered if the VM runs, else done.
func (t tables) changed(vm fleet.VM, wanted *planned) fleet.VM {
	change := &wanted.change
	if vm.Change != nil {
		change.Sequence = vm.Change.Sequence
	}
	change.Sequence++
	if vm.Phase == fleet.VMRunning {
		change.State, change.Untold = fleet.ChangePending, true
		vm.Change = change
		return vm
	}
	if change.Remove {
		wanted.ops = append(wanted.ops, t.freeCard(vm, *change)...)
	}
	vm.Owner.Epoch = max(vm.Owner.Epoch, wanted.epoch)
	vm.Spec = vm.Spec.With(*change)
	vm.Change = change.Ended("")
	return vm
}

// planDisk checks a disk that is to be added, and takes what it needs.
func (s *Server) planDisk(ctx context.Context, vm fleet.VM, message *godwitv1.Disk) (wanted planned, err error) {
	const op = "add disk"
	if message == nil {
		return wanted, invalidField(op, "vm "+string(vm.Name), "disk", "is missing")
	}
	disk := wire.DecodeDisk(message)
	if disk.Kind == fleet.DiskLocal && (vm.Phase == fleet.VMRunning || vm.Local.Host != "") {
		return wanted, conflict(op, vm, "its local disks are made by its first host, when it first starts", "add a volume or a file, or create a VM with that disk")
	}
	free, err := slotsFor(op, vm, true)
	if err != nil {
		return wanted, err
	}
	disk.Slot = free[0]
	wanted.change = fleet.Change{Disk: &disk}
	spec, found, _, err := s.checkChange(ctx, vm, wanted.change, fmt.Sprintf("disks[%d].", len(vm.Spec.Disks)), "disk.")
	if err != nil {
		return wanted, err
	}
	disk = spec.Disks[len(spec.Disks)-1]
	if len(found) == 0 {
		alone := fleet.VM{Name: vm.Name, Spec: fleet.VMSpec{Disks: []fleet.Disk{disk}}}
		if wanted.conditions, wanted.ops, found, err = s.tables.admitVolumes(ctx, &alone); err != nil {
			return wanted, err
		}
		found = under(found, "disks[0].", "disk.")
		if wanted.epoch = alone.Owner.Epoch; wanted.epoch >= vm.Owner.Epoch && wanted.epoch > 0 && vm.Phase == fleet.VMRunning {
			return wanted, conflict(op, vm, fmt.Sprintf("volume %s was used until epoch %d, and the VM is at epoch %d", disk.Volume, wanted.epoch, vm.Owner.Epoch),
				"to a volume server, an epoch that is over never comes back: move the VM, or stop and start it, which gives it a later one")
		}
	}
	return wanted, invalidChange(op, vm, found)
}

// planPort does the same for a port.
func (s *Server) planPort(ctx context.Context, vm fleet.VM, message *godwitv1.Port) (wanted planned, err error) {
	const op = "add port"
	if message == nil {
		return wanted, invalidField(op, "vm "+string(vm.Name), "port", "is missing")
	}
	port, err := wire.DecodePort(message)
	if err != nil {
		return wanted, err
	}
	free, err := slotsFor(op, vm, false)
	if err != nil {
		return wanted, err
	}
	port.Slot = free[0]
	wanted.change = fleet.Change{Port: &port}
	spec, found, networks, err := s.checkChange(ctx, vm, wanted.change, fmt.Sprintf("ports[%d].", len(vm.Spec.Ports)), "port.")
	if err != nil {
		return wanted, err
	}
	port = spec.Ports[len(spec.Ports)-1]
	if len(found) == 0 {
		stands, err := s.checkBridgeOf(ctx, vm, networks[port.Network].Value)
		if err != nil {
			return wanted, err
		}
		alone := fleet.VM{Name: vm.Name, Spec: fleet.VMSpec{Ports: []fleet.Port{port}}}
		if wanted.conditions, wanted.ops, found, err = s.tables.admit(ctx, &alone, networks); err != nil {
			return wanted, err
		}
		port, found = alone.Spec.Ports[0], under(found, "ports[0].", "port.")
		wanted.conditions = append(wanted.conditions, stands...)
	}
	return wanted, invalidChange(op, vm, found)
}

// checkBridgeOf refuses a port in a network that a running VM's host has no bridge for,
// and gives what holds as long as it has it.
func (s *Server) checkBridgeOf(ctx context.Context, vm fleet.VM, network fleet.Network) ([]store.Condition, error) {
	if vm.Phase != fleet.VMRunning || !network.Provider() {
		return nil, nil
	}
	const op = "add port"
	host, err := s.getHost(ctx, op, string(vm.Owner.Host))
	if err != nil {
		return nil, err
	}
	if why := placement.RefuseBridge(host.Value.Networks, network); len(why) > 0 {
		return nil, conflict(op, vm, fmt.Sprintf("host %s, where it runs, cannot have it: %s", host.Name, strings.Join(why, "; ")),
			placement.BridgeHint+"; see to it on this one, or first move the VM to one that can have it")
	}
	return store.If(s.tables.hosts.At(host.Name, host.Version)), nil
}

// checkChange gives the spec after a change, with defaults, and what is wrong with the
// card that is added: at says where that is in the spec, and as how it is told.
func (s *Server) checkChange(ctx context.Context, vm fleet.VM, change fleet.Change, at, as string) (fleet.VMSpec, findings, map[fleet.NetworkName]store.Entry[fleet.Network], error) {
	networks, around, err := s.surroundings(ctx)
	if err != nil {
		return fleet.VMSpec{}, nil, nil, err
	}
	spec := vm.Spec.With(change)
	setDefaults(&spec)
	return spec, under(validateSpec(spec, around), at, as), networks, nil
}

// under gives those findings that are within a field, by another name for that.
func under(found findings, at, as string) (within findings) {
	for _, one := range found {
		if rest, ok := strings.CutPrefix(one.Path, at); ok {
			within = append(within, fleet.FieldError{Path: as + rest, Problem: one.Problem})
		}
	}
	return within
}

// slotsFor gives the slots that a card can have, at least one.
func slotsFor(op string, vm fleet.VM, disks bool) ([]fleet.Slot, error) {
	free := vm.Spec.FreeSlots(disks)
	if len(free) == 0 {
		return nil, conflict(op, vm, fmt.Sprintf("no PCI slot is free: it has %d disks and %d ports", len(vm.Spec.Disks), len(vm.Spec.Ports)), "remove one first")
	}
	if vm.Phase != fleet.VMRunning {
		return free, nil
	}
	free = vm.Spec.PluggableSlots(disks)
	if len(free) == 0 {
		return nil, conflict(op, vm, "its machine has no free root port, into which a card could be plugged while it runs",
			"when it has been stopped and started it has some more: then, or while it is stopped, this works")
	}
	return free, nil
}

// changeAgainIn is when to ask again for what waits for a change of a VM's hardware.
const changeAgainIn = 5 * time.Second

// changing refuses what has to wait for a change of the hardware.
func changing(op string, vm fleet.VM) error {
	err := conflict(op, vm, fmt.Sprintf("its hardware is being changed: %v", *vm.Change), "try again; godwit vm show tells when that is over")
	err.RetryAfter = changeAgainIn
	return err
}

func conflict(op string, vm fleet.VM, cause, hint string) *fleet.Error {
	return &fleet.Error{Code: fleet.Conflict, Op: op, Subject: "vm " + string(vm.Name), Cause: cause, Hint: hint}
}

func noCard(op string, vm fleet.VM, what string) error {
	return &fleet.Error{
		Code: fleet.NotFound, Op: op, Subject: "vm " + string(vm.Name), Cause: "it has no " + what,
		Hint: "godwit vm show " + string(vm.Name) + " lists what it has",
	}
}

func invalidChange(op string, vm fleet.VM, found findings) error {
	if len(found) == 0 {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Invalid, Op: op, Subject: "vm " + string(vm.Name), Cause: "what is to be added is not valid", Fields: found,
	}
}
