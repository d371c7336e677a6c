package server

import (
	"context"
	"maps"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/placement"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// Start places a VM and tells its host. It answers when that is decided; the
// VM's phase tells when it runs. A VM that starts or runs already is left as it
// is, unless it is to be on another host.
func (v vmService) Start(ctx context.Context, request *godwitv1.StartVMRequest) (*godwitv1.StartVMResponse, error) {
	s := v.server
	s.admission.Lock()
	defer s.admission.Unlock()
	for range store.MaxConflicts {
		entry, err := s.getVM(ctx, "start", request.GetName())
		if err != nil {
			return nil, err
		}
		if err := checkVersion("start", "vm", entry, request.GetVersion()); err != nil {
			return nil, err
		}
		if done, err := checkStart(entry.Value, fleet.HostName(request.GetHost())); err != nil || done {
			return &godwitv1.StartVMResponse{Vm: wire.EncodeVM(entry.Value, entry.Version)}, err
		}
		if _, err := s.migrations.pass(ctx, "start", migration.StartVM, entry.Value); err != nil {
			return nil, err
		}
		placed, err := s.place(ctx, entry.Value, fleet.HostName(request.GetHost()))
		if err != nil {
			return nil, err
		}
		conditions := append(placed.conditions, s.tables.vms.At(entry.Name, entry.Version))
		ops := append(placed.ops, s.tables.vms.Put(entry.Name, placed.vm))
		revision, err := s.tables.store.Commit(ctx, conditions, ops...)
		if fleet.CodeOf(err) == fleet.Conflict {
			continue
		}
		if err != nil {
			return nil, err
		}
		s.log.Info("vm placed", "vm", entry.Name, "host", placed.vm.Owner.Host, "epoch", placed.vm.Owner.Epoch, "why", placed.why)
		return &godwitv1.StartVMResponse{Vm: wire.EncodeVM(placed.vm, revision)}, nil
	}
	return nil, tooManyConflicts("start", "vm "+request.GetName())
}

// checkStart reports whether there is nothing left to do, or why it must not
// be done.
func checkStart(vm fleet.VM, want fleet.HostName) (done bool, err error) {
	conflict := func(cause, hint string) error {
		return &fleet.Error{Code: fleet.Conflict, Op: "start", Subject: "vm " + string(vm.Name), Cause: cause, Hint: hint}
	}
	switch vm.Phase {
	case fleet.VMStopped, fleet.VMFailed:
		return false, nil
	case fleet.VMStopping:
		return false, conflict("it is still stopping on host "+string(vm.Owner.Host),
			"try again when it is stopped; godwit vm stop "+string(vm.Name)+" waits for that, and with --grace 0s ends it at once")
	}
	if want != "" && want != vm.Owner.Host {
		return false, conflict("it is "+string(vm.Phase)+" on host "+string(vm.Owner.Host),
			"move it: godwit migrate "+string(vm.Name)+" --to "+string(want))
	}
	return true, nil
}

// placed is a decision to start a VM, with what must hold and be done in the
// commit that also puts the VM.
type placed struct {
	vm         fleet.VM
	why        string
	conditions []store.Condition
	ops        []store.Op
}

// place decides where a VM starts. What it decides on are conditions, so that
// neither a cordon nor another VM can come in between.
func (s *Server) place(ctx context.Context, vm fleet.VM, want fleet.HostName) (placed, error) {
	on, err := s.tables.grounds(ctx, vm.Spec, s.hub.connected)
	if err != nil {
		return placed{}, err
	}
	result, err := placement.Choose(on.snapshot, placement.Request{VM: vm, Want: want, Networks: on.networks})
	if err != nil {
		return placed{}, err
	}
	name, qemu := string(result.Host), on.hosts[result.Host].Value.QEMU
	// Not that of a target which may still wait somewhere: a migration's target has
	// one more than the owner had, and so has the end of the owner.
	vm.Owner = fleet.Owner{Host: result.Host, Epoch: vm.Owner.Epoch + 1}
	vm.Phase, vm.Cause, vm.QEMU = fleet.VMStarting, "", fleet.InstanceQEMU{}
	if len(vm.Spec.LocalDisks()) > 0 {
		vm.Local.Host = result.Host
	}
	vm.Spec.CPUModel, vm.Accel = placement.CPUModel(vm.Spec, qemu), qemu.Accel
	if versioned, alias := qemu.Aliases[vm.Spec.Machine]; alias {
		vm.Spec.Machine = versioned
	}
	vm.Spec = vm.Spec.Slotted()
	vm.Spec.RootPorts = vm.Spec.NewRootPorts()
	return placed{
		vm: vm, why: result.Why,
		conditions: on.stand(s.tables, result.Host),
		ops:        []store.Op{s.tables.ledgers.Put(name, claimed(on.ledgers[result.Host].Value, result.Host, vm))},
	}, nil
}

// claimed gives the ledger with the VM's claim on it.
func claimed(ledger fleet.Ledger, host fleet.HostName, vm fleet.VM) fleet.Ledger {
	with := fleet.Ledger{Host: host, Claims: map[fleet.InstanceUID]fleet.Claim{}}
	maps.Copy(with.Claims, ledger.Claims)
	with.Claims[vm.UID] = vm.Spec.Claim()
	return with
}

// grounds is what a placement decides on, with the versions on which the
// decision is conditioned; a host that has no ledger yet has version 0.
type grounds struct {
	snapshot placement.Snapshot
	hosts    map[fleet.HostName]store.Entry[fleet.Host]
	ledgers  map[fleet.HostName]store.Entry[fleet.Ledger]
	// Of the VM's ports, each once. What placement asks of them does not change, and the
	// VM keeps them from being deleted.
	networks []fleet.Network
}

// stand holds as long as what was decided on the host does.
func (g grounds) stand(t tables, host fleet.HostName) []store.Condition {
	name := string(host)
	return store.If(t.hosts.At(name, g.hosts[host].Version), t.ledgers.At(name, g.ledgers[host].Version))
}

// grounds reads them, for a VM of that spec. up tells whether a host's agent has a session.
func (t tables) grounds(ctx context.Context, spec fleet.VMSpec, up func(fleet.HostName) bool) (grounds, error) {
	g := grounds{hosts: map[fleet.HostName]store.Entry[fleet.Host]{}, ledgers: map[fleet.HostName]store.Entry[fleet.Ledger]{}}
	hosts, _, err := t.hosts.All(ctx)
	if err != nil {
		return g, err
	}
	ledgers, _, err := t.ledgers.All(ctx)
	if err != nil {
		return g, err
	}
	for _, entry := range ledgers {
		g.ledgers[fleet.HostName(entry.Name)] = entry
	}
	for _, entry := range hosts {
		name := entry.Value.Name
		g.hosts[name] = entry
		g.snapshot.Hosts = append(g.snapshot.Hosts, placement.Candidate{Host: entry.Value, Ledger: g.ledgers[name].Value, Up: up(name)})
	}
	g.networks, err = t.networksOf(ctx, spec)
	return g, err
}

// networksOf reads each network of a VM once, in the order of its ports.
func (t tables) networksOf(ctx context.Context, spec fleet.VMSpec) (networks []fleet.Network, err error) {
	read := map[fleet.NetworkName]bool{}
	for _, port := range spec.Ports {
		if read[port.Network] {
			continue
		}
		read[port.Network] = true
		entry, err := t.networks.Get(ctx, string(port.Network))
		if err != nil {
			return nil, err
		}
		networks = append(networks, entry.Value)
	}
	return networks, nil
}
