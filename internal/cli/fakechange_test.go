package cli_test

import (
	"context"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// changedVM is a VM whose hardware was changed; that of "sick" has failed.
func changedVM(name string, change *godwitv1.HardwareChange) *godwitv1.VM {
	vm := inPhase(name, "running", "")
	change.Sequence, change.State = 3, "done"
	if name == "sick" {
		change.State, change.Cause = "failed", "the guest did not let go of it within 30s"
	}
	vm.Change = change
	return vm
}

func (f *fakeServer) AddDisk(_ context.Context, request *godwitv1.AddDiskRequest) (*godwitv1.AddDiskResponse, error) {
	change := &godwitv1.HardwareChange{Disk: request.GetDisk()}
	return &godwitv1.AddDiskResponse{Vm: changedVM(request.GetName(), change)}, f.note(request)
}

func (f *fakeServer) RemoveDisk(_ context.Context, request *godwitv1.RemoveDiskRequest) (*godwitv1.RemoveDiskResponse, error) {
	change := &godwitv1.HardwareChange{Remove: true, Disk: &godwitv1.Disk{Name: request.GetDisk()}}
	return &godwitv1.RemoveDiskResponse{Vm: changedVM(request.GetName(), change)}, f.note(request)
}

func (f *fakeServer) AddPort(_ context.Context, request *godwitv1.AddPortRequest) (*godwitv1.AddPortResponse, error) {
	change := &godwitv1.HardwareChange{Port: request.GetPort()}
	return &godwitv1.AddPortResponse{Vm: changedVM(request.GetName(), change)}, f.note(request)
}

func (f *fakeServer) RemovePort(_ context.Context, request *godwitv1.RemovePortRequest) (*godwitv1.RemovePortResponse, error) {
	change := &godwitv1.HardwareChange{Remove: true, Port: &godwitv1.Port{Name: request.GetPort()}}
	return &godwitv1.RemovePortResponse{Vm: changedVM(request.GetName(), change)}, f.note(request)
}
