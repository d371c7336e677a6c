package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// Create records a VM and, unless told otherwise, starts it, all in one commit:
// a VM that fits nowhere is not created. If it is only to be validated, all is
// decided and nothing is committed.
func (v vmService) Create(ctx context.Context, request *godwitv1.CreateVMRequest) (*godwitv1.CreateVMResponse, error) {
	s := v.server
	s.admission.Lock()
	defer s.admission.Unlock()
	create := func(r receipt) (*godwitv1.CreateVMResponse, int64, error) {
		for range store.MaxConflicts {
			response, revision, err := s.create(ctx, request, r)
			if fleet.CodeOf(err) != fleet.Conflict {
				return response, revision, err
			}
		}
		return nil, 0, tooManyConflicts("create", "vm "+request.GetName())
	}
	if request.GetValidateOnly() {
		response, _, err := create(receipt{})
		return response, err
	}
	return once(ctx, s.tables, "create vm", request, new(godwitv1.CreateVMResponse),
		func(response *godwitv1.CreateVMResponse, version int64) { response.Vm.Version = version }, create)
}

// create gives the answer without the VM's version, and the version.
func (s *Server) create(ctx context.Context, request *godwitv1.CreateVMRequest, r receipt) (*godwitv1.CreateVMResponse, int64, error) {
	networks, around, err := s.surroundings(ctx)
	if err != nil {
		return nil, 0, err
	}
	vm, found := newVM(request, around)
	name := string(vm.Name)
	var conditions []store.Condition
	var ops []store.Op
	if !found.under("ports") { // else there is nothing that addresses can be taken for
		var taken findings
		if conditions, ops, taken, err = s.tables.admit(ctx, &vm, networks); err != nil {
			return nil, 0, err
		}
		found = append(found, taken...)
	}
	if !found.under("disks") {
		free, held, taken, err := s.tables.admitVolumes(ctx, &vm)
		if err != nil {
			return nil, 0, err
		}
		conditions, ops, found = append(conditions, free...), append(ops, held...), append(found, taken...)
	}
	if len(found) > 0 {
		return nil, 0, invalidSpec(name, found)
	}
	if _, err := s.tables.vms.Get(ctx, name); err == nil {
		return nil, 0, &fleet.Error{Code: fleet.Exists, Op: "create", Subject: "vm " + name, Cause: "there is a VM of that name already"}
	} else if fleet.CodeOf(err) != fleet.NotFound {
		return nil, 0, err
	}
	if !request.GetStopped() {
		placed, err := s.place(ctx, vm, fleet.HostName(request.GetHost()))
		if err != nil {
			return nil, 0, err
		}
		vm = placed.vm
		conditions, ops = append(conditions, placed.conditions...), append(ops, placed.ops...)
	}
	response := &godwitv1.CreateVMResponse{Vm: wire.EncodeVM(vm, 0)}
	if request.GetValidateOnly() {
		return response, 0, nil
	}
	free, kept, err := r.keep(response)
	if err != nil {
		return nil, 0, err
	}
	conditions, ops = append(conditions, s.tables.vms.Absent(name)), append(ops, s.tables.vms.Put(name, vm))
	revision, err := s.tables.store.Commit(ctx, append(conditions, free...), append(ops, kept...)...)
	if err != nil {
		return nil, 0, err
	}
	s.log.Info("vm created", "vm", name, "host", vm.Owner.Host)
	return response, revision, nil
}

// surroundings reads what a spec is checked against.
func (s *Server) surroundings(ctx context.Context) (map[fleet.NetworkName]store.Entry[fleet.Network], surroundings, error) {
	around := surroundings{networks: map[fleet.NetworkName]fleet.Network{}}
	networks, _, err := s.tables.networks.All(ctx)
	if err != nil {
		return nil, around, err
	}
	byName := map[fleet.NetworkName]store.Entry[fleet.Network]{}
	for _, network := range networks {
		byName[network.Value.Name] = network
		around.networks[network.Value.Name] = network.Value
	}
	if around.volumeServers, err = s.tables.knownVolumeServers(ctx); err != nil {
		return nil, around, err
	}
	hosts, _, err := s.tables.hosts.All(ctx)
	for _, host := range hosts {
		around.hosts = append(around.hosts, host.Value)
	}
	return byName, around, err
}

// newVM reads a request and gives everything that is wrong with it.
func newVM(request *godwitv1.CreateVMRequest, around surroundings) (vm fleet.VM, found findings) {
	if err := fleet.CheckName(request.GetName()); err != nil {
		found.add("name", "%v", err)
	}
	if request.GetStopped() && request.GetHost() != "" {
		found.add("host", "a VM that is left stopped has no host")
	}
	spec, err := wire.DecodeSpec(request.GetSpec())
	if malformed, ok := errors.AsType[*fleet.Error](err); ok {
		found = append(found, malformed.Fields...)
	}
	if request.GetSpec() != nil {
		setDefaults(&spec)
		found = append(found, validateSpec(spec, around)...)
	}
	return fleet.VM{
		Name: fleet.VMName(request.GetName()), UID: newUID(), Spec: spec,
		Phase: fleet.VMStopped, Created: time.Now(),
	}, found
}

func invalidSpec(name string, found findings) error {
	return &fleet.Error{
		Code: fleet.Invalid, Op: "create", Subject: "vm " + name,
		Cause: "the spec is not valid", Fields: found,
	}
}

// newUID gives a random UUID (RFC 9562, version 4).
func newUID() fleet.InstanceUID {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails since Go 1.24
	raw[6] = raw[6]&0x0f | 0x40
	raw[8] = raw[8]&0x3f | 0x80
	return fleet.InstanceUID(fmt.Sprintf("%x-%x-%x-%x-%x", raw[:4], raw[4:6], raw[6:8], raw[8:10], raw[10:]))
}
