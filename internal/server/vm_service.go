package server

import (
	"context"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// vmService is the API of VMs.
type vmService struct{ server *Server }

func (v vmService) Get(ctx context.Context, request *godwitv1.GetVMRequest) (*godwitv1.GetVMResponse, error) {
	entry, err := v.server.getVM(ctx, "show", request.GetName())
	if err != nil {
		return nil, err
	}
	return &godwitv1.GetVMResponse{Vm: wire.EncodeVM(entry.Value, entry.Version)}, nil
}

func (v vmService) List(ctx context.Context, request *godwitv1.ListVMsRequest) (*godwitv1.ListVMsResponse, error) {
	var onHost func(fleet.VM) bool
	if host := fleet.HostName(request.GetHost()); host != "" {
		onHost = func(vm fleet.VM) bool { return vm.Owner.Host == host }
	}
	entries, token, err := readPage(ctx, v.server.tables.vms, request.GetPage(), onHost)
	if err != nil {
		return nil, err
	}
	response := &godwitv1.ListVMsResponse{NextToken: token}
	for _, entry := range entries {
		response.Vms = append(response.Vms, wire.EncodeVM(entry.Value, entry.Version))
	}
	return response, nil
}

// Watch sends the VMs as they are, then every change in order. A client that
// falls so far behind that the history is gone is told to watch again.
func (v vmService) Watch(ctx context.Context, request *godwitv1.WatchVMsRequest, stream *connect.ServerStream[godwitv1.WatchVMsResponse]) error {
	name, vms := request.GetName(), v.server.tables.vms
	entries, revision, err := vms.All(ctx)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if name != "" && entry.Name != name {
			continue
		}
		if err := stream.Send(&godwitv1.WatchVMsResponse{Vm: wire.EncodeVM(entry.Value, entry.Version)}); err != nil {
			return err
		}
	}
	watch := vms.Watch(ctx, revision)
	for event := range watch.Events() {
		if name != "" && vms.Name(event.Record) != name {
			continue
		}
		message, err := v.changeOf(event)
		if err != nil {
			return err
		}
		if err := stream.Send(message); err != nil {
			return err
		}
	}
	return watch.Err()
}

func (v vmService) changeOf(event store.Event) (*godwitv1.WatchVMsResponse, error) {
	if event.Deleted {
		gone := &godwitv1.VM{Name: v.server.tables.vms.Name(event.Record), Version: event.Version}
		return &godwitv1.WatchVMsResponse{Vm: gone, Deleted: true}, nil
	}
	entry, err := v.server.tables.vms.Decode(event.Record)
	return &godwitv1.WatchVMsResponse{Vm: wire.EncodeVM(entry.Value, entry.Version)}, err
}

// Delete removes the record of a VM that has no instance, and frees its
// addresses.
func (v vmService) Delete(ctx context.Context, request *godwitv1.DeleteVMRequest) (*godwitv1.DeleteVMResponse, error) {
	t, wanted := v.server.tables, request.GetVersion()
	for range store.MaxConflicts {
		entry, err := v.server.getVM(ctx, "delete", request.GetName())
		if err != nil {
			return nil, err
		}
		if err := checkVersion("delete", "vm", entry, wanted); err != nil {
			return nil, err
		}
		if vm := entry.Value; vm.Phase != fleet.VMStopped && vm.Phase != fleet.VMFailed {
			return nil, &fleet.Error{
				Code: fleet.Conflict, Op: "delete", Subject: "vm " + entry.Name, Cause: "it is " + string(vm.Phase),
				Hint: "stop it first: godwit vm stop " + entry.Name,
			}
		}
		unlocked, err := v.server.migrations.pass(ctx, "delete", migration.DeleteVM, entry.Value)
		if err != nil {
			return nil, err
		}
		if unlocked != 0 {
			wanted = following(wanted, unlocked)
			continue
		}
		ops := []store.Op{t.vms.Delete(entry.Name), t.stops.Delete(entry.Name)}
		for _, key := range addressKeysOf(entry.Value.Spec) {
			ops = append(ops, t.addresses.Delete(key))
		}
		ops = append(ops, t.freeVolumes(entry.Value)...)
		ops = append(ops, t.leaveDisks(entry.Value)...)
		_, err = t.store.Commit(ctx, store.If(t.vms.At(entry.Name, entry.Version)), ops...)
		if fleet.CodeOf(err) == fleet.Conflict {
			continue
		}
		if err != nil {
			return nil, err
		}
		v.server.log.Info("vm deleted", "vm", entry.Name)
		return &godwitv1.DeleteVMResponse{}, nil
	}
	return nil, tooManyConflicts("delete", "vm "+request.GetName())
}
