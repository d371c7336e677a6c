package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/wire"
)

// present is when the tests take place.
var present = time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)

func before(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(present.Add(-d)) }

// fakeServer answers with canned data over real connections. What it was last
// asked to change is written as JSON to the file "asked" of the script.
type fakeServer struct {
	godwitv1connect.UnimplementedVMServiceHandler
	asked   string
	watches atomic.Int32 // of the migration "flaky" and the VM "cut"
	typed   chan []byte  // on a console
}

// serveFake starts the server of one script and names it in the script's
// environment.
func serveFake(env *testscript.Env) error {
	address, stop, err := startFake(env.WorkDir + "/asked")
	if err != nil {
		return err
	}
	env.Defer(stop)
	env.Setenv("GODWIT_SERVER", address)
	env.Setenv("TZ", "UTC")
	env.Setenv("GORACE", noRaceSleep)
	return nil
}

// startFake starts a server on a socket of its own.
func startFake(asked string) (address string, stop func(), err error) {
	// A socket's path must be short, so it cannot be in a test's folder.
	folder, err := os.MkdirTemp("", "cli")
	if err != nil {
		return "", nil, err
	}
	listener, err := net.Listen("unix", folder+"/s")
	if err != nil {
		os.RemoveAll(folder)
		return "", nil, err
	}
	fake := &fakeServer{asked: asked, typed: make(chan []byte)}
	coded := connect.WithInterceptors(wire.ServerInterceptor())
	mux := http.NewServeMux()
	mux.Handle(godwitv1connect.NewVMServiceHandler(fake, coded))
	mux.Handle(godwitv1connect.NewHostServiceHandler(fakeHosts{fakeServer: fake}, coded))
	mux.Handle(godwitv1connect.NewNetworkServiceHandler(fakeNetworks{fakeServer: fake}, coded))
	mux.Handle(godwitv1connect.NewMigrationServiceHandler(fakeMigrations{fakeServer: fake}, coded))
	mux.Handle(godwitv1connect.NewVolumeServerServiceHandler(fakeVolumeServers{}, coded))
	server := &http.Server{Handler: mux, Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	return "unix://" + folder + "/s", func() {
		server.Close()
		<-done
		os.RemoveAll(folder)
	}, nil
}

// note records a request for the script to compare.
func (f *fakeServer) note(request proto.Message) error {
	data, err := protojson.Marshal(request)
	if err != nil {
		return err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return err
	}
	return os.WriteFile(f.asked, append(compact.Bytes(), '\n'), 0o600)
}

func missing(op, subject string) error {
	return &fleet.Error{Code: fleet.NotFound, Op: op, Subject: subject, Cause: "there is none of that name"}
}

var web1 = &godwitv1.VM{
	Name: "web1", Uid: "0b5c6a4e-0000-4000-8000-000000000001", Phase: "running", Version: 12, Accel: "kvm", QemuVersion: "7.2.17",
	Owner:   &godwitv1.Owner{Host: "host-a", Epoch: 3},
	Created: before(75 * time.Hour),
	Spec: &godwitv1.VMSpec{
		Cpus: 2, MemoryBytes: 512 << 20, Machine: "pc-q35-10.0", CpuModel: "Cascadelake-Server",
		Boot: &godwitv1.Boot{Kernel: "/srv/vmlinuz", Cmdline: "console=ttyS0"},
		Disks: []*godwitv1.Disk{
			{Name: "root", Kind: "file", Path: "/srv/web1.qcow2", Format: "qcow2"},
			{Name: "tools", Kind: "file", Path: "/srv/tools.raw", Format: "raw", ReadOnly: true},
		},
		Ports: []*godwitv1.Port{
			{Name: "lan", Network: "blue", Mac: "52:54:00:12:34:56", Ips: []string{"10.20.0.5", "fd00::5"}, Queues: 1},
		},
	},
}

var db1 = &godwitv1.VM{
	Name: "db1", Phase: "failed", Cause: "QEMU ended with status 1", Owner: &godwitv1.Owner{Host: "host-b", Epoch: 1},
	Created: before(95 * time.Second), Migration: "m2", Spec: &godwitv1.VMSpec{Cpus: 16, MemoryBytes: 3 << 29},
}

var batch = &godwitv1.VM{Name: "batch", Phase: "stopped", Created: before(5 * time.Hour), Spec: &godwitv1.VMSpec{Cpus: 1, MemoryBytes: 1 << 30}}

func (f *fakeServer) Get(_ context.Context, request *godwitv1.GetVMRequest) (*godwitv1.GetVMResponse, error) {
	if request.GetName() != "web1" {
		return nil, missing("show", "vm "+request.GetName())
	}
	return &godwitv1.GetVMResponse{Vm: web1}, nil
}

// List gives two pages.
func (f *fakeServer) List(_ context.Context, request *godwitv1.ListVMsRequest) (*godwitv1.ListVMsResponse, error) {
	switch {
	case request.GetHost() == "host-b", request.GetHost() == "host-z":
		return &godwitv1.ListVMsResponse{}, nil
	case request.GetPage().GetToken() == "":
		return &godwitv1.ListVMsResponse{Vms: []*godwitv1.VM{web1, db1}, NextToken: "more"}, nil
	}
	return &godwitv1.ListVMsResponse{Vms: []*godwitv1.VM{batch}}, nil
}

func (f *fakeServer) Create(_ context.Context, request *godwitv1.CreateVMRequest) (*godwitv1.CreateVMResponse, error) {
	switch request.GetName() {
	case "taken":
		return nil, &fleet.Error{Code: fleet.Exists, Op: "create", Subject: "vm taken", Cause: "there is one of that name"}
	case "bad":
		return nil, &fleet.Error{
			Code: fleet.Invalid, Op: "create", Subject: "vm bad", Cause: "the spec is not valid",
			Fields: []fleet.FieldError{
				{Path: "disks[0].path", Problem: "is missing"}, {Path: "ports[1].mac", Problem: `"x" is not a MAC address`},
			},
		}
	}
	if err := judge(request); err != nil {
		return nil, err
	}
	vm := inPhase(request.GetName(), "starting", "")
	if request.GetStopped() {
		vm.Phase, vm.Owner = "stopped", nil
	}
	return &godwitv1.CreateVMResponse{Vm: vm}, f.note(request)
}

// judge finds little of what the real server would, but in its words.
func judge(request *godwitv1.CreateVMRequest) error {
	var fields []fleet.FieldError
	add := func(wrong bool, path, problem string) {
		if wrong {
			fields = append(fields, fleet.FieldError{Path: path, Problem: problem})
		}
	}
	spec := request.GetSpec()
	add(request.GetName() == "", "name", "is missing")
	add(spec.GetMemoryBytes() == 0, "memory_bytes", "is 0B, must be between 16MiB and 16TiB")
	add(spec.GetCpuModel() == "host", "cpu_model", `no host can run CPU model "host"`)
	add(spec.GetBoot() != nil && spec.GetBoot().GetKernel() == "", "boot.kernel", "is missing")
	for i, port := range spec.GetPorts() {
		add(port.GetNetwork() != "blue", fmt.Sprintf("ports[%d].network", i), fmt.Sprintf("there is no network %q", port.GetNetwork()))
	}
	if len(fields) == 0 {
		return nil
	}
	return &fleet.Error{Code: fleet.Invalid, Op: "create", Subject: "vm " + request.GetName(), Cause: "the spec is not valid", Fields: fields}
}

func (f *fakeServer) Start(_ context.Context, request *godwitv1.StartVMRequest) (*godwitv1.StartVMResponse, error) {
	switch request.GetName() {
	case "web1":
		return nil, &fleet.Error{
			Code: fleet.NoFit, Op: "start", Subject: "vm web1", Cause: "no host fits", Hint: "free memory, or stop a VM",
			Fields: []fleet.FieldError{
				{Path: "host-a", Problem: "needs 512MiB of memory, 100MiB is left"}, {Path: "host-b", Problem: "is cordoned"},
			},
		}
	case "locked":
		return nil, &fleet.Error{Code: fleet.Conflict, Op: "start", Subject: "vm locked", Cause: "migration m2 holds it", Hint: "wait for it",
			RetryAfter: 12300 * time.Millisecond}
	case "broken":
		return nil, fmt.Errorf("read record: %w", os.ErrInvalid)
	case "died":
		return nil, &fleet.Error{Code: fleet.Failed, Op: "start", Subject: "vm died", Cause: "QEMU ended with status 1", Err: errDied}
	case "slow":
		return nil, &fleet.Error{Code: fleet.Deadline, Op: "start", Subject: "vm slow", Cause: "it took longer than 10s"}
	}
	if request.GetName() == "batch" {
		return &godwitv1.StartVMResponse{Vm: web1}, f.note(request) // it runs at once
	}
	return &godwitv1.StartVMResponse{Vm: inPhase(request.GetName(), "starting", "")}, f.note(request)
}

var errDied = errors.New("qemu: first line\nqemu: second line")

func (f *fakeServer) Stop(_ context.Context, request *godwitv1.StopVMRequest) (*godwitv1.StopVMResponse, error) {
	return &godwitv1.StopVMResponse{Vm: inPhase(request.GetName(), "stopping", "")}, f.note(request)
}

func (f *fakeServer) Delete(_ context.Context, request *godwitv1.DeleteVMRequest) (*godwitv1.DeleteVMResponse, error) {
	if request.GetName() != "batch" {
		return nil, &fleet.Error{Code: fleet.Denied, Op: "delete", Subject: "vm " + request.GetName(), Cause: "the certificate does not allow it"}
	}
	return &godwitv1.DeleteVMResponse{}, f.note(request)
}

// inPhase gives a VM of version 5 on host-a.
func inPhase(name, phase, cause string) *godwitv1.VM {
	return &godwitv1.VM{Name: name, Phase: phase, Cause: cause, Version: 5, Owner: &godwitv1.Owner{Host: "host-a", Epoch: 1}}
}

// orders is what becomes of VMs that were told to start or stop.
func (f *fakeServer) orders(name string) []*godwitv1.WatchVMsResponse {
	stale := inPhase(name, "running", "")
	stale.Version = 4
	changes := []*godwitv1.WatchVMsResponse{{Vm: stale}}
	add := func(phases ...string) []*godwitv1.WatchVMsResponse {
		for _, phase := range phases {
			changes = append(changes, &godwitv1.WatchVMsResponse{Vm: inPhase(name, phase, "")})
		}
		return changes
	}
	switch name {
	case "rise", "new", "web7":
		return add("starting", "running")
	case "fall":
		return add("stopping", "stopped")
	case "sick":
		return []*godwitv1.WatchVMsResponse{{Vm: inPhase(name, "failed", "no such kernel")}}
	case "again":
		return add("stopping", "running")
	case "lost":
		return []*godwitv1.WatchVMsResponse{{Vm: stale, Deleted: true}}
	case "cut":
		if f.watches.Add(1) == 1 {
			return add("stopping") // and then the server goes away
		}
		return add("stopping", "stopped")
	case "endless":
		return add("stopping")
	}
	return nil
}

func (f *fakeServer) Watch(ctx context.Context, request *godwitv1.WatchVMsRequest, stream *connect.ServerStream[godwitv1.WatchVMsResponse]) error {
	if request.GetName() == "gone" {
		return missing("watch", "vm gone")
	}
	changes := f.orders(request.GetName())
	if changes == nil {
		changes = []*godwitv1.WatchVMsResponse{{Vm: web1}, {Vm: db1}, {Vm: &godwitv1.VM{Name: "batch"}, Deleted: true}}
	}
	for _, change := range changes {
		if err := stream.Send(change); err != nil {
			return err
		}
	}
	if request.GetName() == "" || request.GetName() == "endless" {
		<-ctx.Done()
	}
	return ctx.Err()
}
