package cli_test

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
)

type fakeHosts struct {
	godwitv1connect.UnimplementedHostServiceHandler
	*fakeServer
}

var hostA = &godwitv1.Host{
	Name: "host-a", Address: "192.0.2.1", State: "up", Cpus: 32, CpusReserved: 18, MemoryBytes: 64 << 30,
	MemoryReservedBytes: 20 << 30, QemuVersion: "10.0.2 (Debian 1:10.0.2+ds-2)", Accel: "kvm", AgentVersion: "v0.1.0", Seen: before(4 * time.Second),
	Machines: []string{"pc-q35-10.0", "pc-q35-9.2"}, MachineAliases: map[string]string{"q35": "pc-q35-10.0", "pc": "pc-i440fx-10.0"},
	CpuModels: []string{"qemu64", "Nehalem", "Haswell", "Broadwell", "Cascadelake-Server"}, Version: 9,
	Networks: &godwitv1.HostNetworks{UnderlayMtu: 1600, Bridges: []*godwitv1.Bridge{
		{Name: "br0", Mtu: 1500, FiltersVlans: true}, {Name: "br-storage", Mtu: 9000},
	}},
}

var hostB = &godwitv1.Host{Name: "host-b", Address: "192.0.2.2", State: "down", Cpus: 8, MemoryBytes: 16 << 30, QemuVersion: "7.2.17", Accel: "tcg", Seen: before(26 * time.Hour),
	Networks: &godwitv1.HostNetworks{Bridges: []*godwitv1.Bridge{{Name: "br0", Mtu: 1500}}}}

func (fakeHosts) Get(_ context.Context, request *godwitv1.GetHostRequest) (*godwitv1.GetHostResponse, error) {
	switch request.GetName() {
	case "host-a":
		return &godwitv1.GetHostResponse{Host: hostA}, nil
	case "host-b":
		return &godwitv1.GetHostResponse{Host: hostB}, nil
	}
	return nil, missing("show", "host "+request.GetName())
}

func (fakeHosts) List(context.Context, *godwitv1.ListHostsRequest) (*godwitv1.ListHostsResponse, error) {
	return &godwitv1.ListHostsResponse{Hosts: []*godwitv1.Host{hostA, hostB}}, nil
}

func (h fakeHosts) Cordon(_ context.Context, request *godwitv1.CordonHostRequest) (*godwitv1.CordonHostResponse, error) {
	state := "up"
	if request.GetCordoned() {
		state = "cordoned"
	}
	return &godwitv1.CordonHostResponse{Host: &godwitv1.Host{Name: request.GetName(), State: state}}, h.note(request)
}

func (h fakeHosts) DeclareLost(_ context.Context, request *godwitv1.DeclareHostLostRequest) (*godwitv1.DeclareHostLostResponse, error) {
	response := &godwitv1.DeclareHostLostResponse{Host: &godwitv1.Host{Name: request.GetName(), State: "down", Cordoned: true}}
	switch {
	case !request.GetIsOff():
		return nil, &fleet.Error{Code: fleet.Invalid, Op: "declare lost", Subject: "host " + request.GetName(), Cause: "the request is invalid"}
	case request.GetName() == "host-a":
		return nil, &fleet.Error{Code: fleet.Conflict, Op: "declare lost", Subject: "host host-a", Cause: "it is not off: its agent has a session"}
	case request.GetName() == "host-b":
		response.Vms = []*godwitv1.VM{
			{Name: "web1", Phase: "failed", Cause: "host host-b was declared lost by the operator"},
			{Name: "web2", Phase: "stopped"},
			{Name: "web3", Phase: "running", Migration: "m2"},
		}
		response.Migrations = []*godwitv1.Migration{inState("m2", "switching", 2, 0), stuck}
	}
	return response, h.note(request)
}

func (h fakeHosts) CreateToken(_ context.Context, request *godwitv1.CreateTokenRequest) (*godwitv1.CreateTokenResponse, error) {
	expires := present.Add(time.Duration(request.GetValidSeconds()) * time.Second)
	return &godwitv1.CreateTokenResponse{Token: "gt-s3cret", Expires: timestamppb.New(expires)}, h.note(request)
}

type fakeNetworks struct {
	godwitv1connect.UnimplementedNetworkServiceHandler
	*fakeServer
}

var blue = &godwitv1.Network{
	Name: "blue", Vni: 4711, Mtu: 1450, Subnets: []string{"10.20.0.0/24", "fd00::/64"}, Version: 2,
	Endpoints: []*godwitv1.Endpoint{{Name: "gateway", Host: "host-a", Device: "eth1", Mac: "52:54:00:00:00:01", Ips: []string{"10.20.0.1"}}},
}

var prod = &godwitv1.Network{Name: "prod", Bridge: "br0", Vlan: 100, Mtu: 1500, Version: 3}

func (fakeNetworks) Get(_ context.Context, request *godwitv1.GetNetworkRequest) (*godwitv1.GetNetworkResponse, error) {
	if request.GetName() == "prod" {
		return &godwitv1.GetNetworkResponse{Network: prod}, nil
	}
	return &godwitv1.GetNetworkResponse{Network: blue}, nil
}

func (fakeNetworks) List(context.Context, *godwitv1.ListNetworksRequest) (*godwitv1.ListNetworksResponse, error) {
	return &godwitv1.ListNetworksResponse{Networks: []*godwitv1.Network{
		blue, {Name: "red", Vni: 4712, Mtu: 1500}, prod, {Name: "storage", Bridge: "br-storage", Mtu: 9000},
	}}, nil
}

func (n fakeNetworks) Create(_ context.Context, request *godwitv1.CreateNetworkRequest) (*godwitv1.CreateNetworkResponse, error) {
	network := &godwitv1.Network{
		Name: request.GetNetwork().GetName(), Mtu: 1500, Bridge: request.GetNetwork().GetBridge(), Vlan: request.GetNetwork().GetVlan(),
	}
	if network.GetBridge() == "" {
		network.Vni = 4713
	}
	return &godwitv1.CreateNetworkResponse{Network: network}, n.note(request)
}

func (n fakeNetworks) Delete(_ context.Context, request *godwitv1.DeleteNetworkRequest) (*godwitv1.DeleteNetworkResponse, error) {
	if request.GetName() == "blue" {
		return nil, &fleet.Error{Code: fleet.Conflict, Op: "delete", Subject: "network blue", Cause: "vm web1 has a port in it"}
	}
	return &godwitv1.DeleteNetworkResponse{}, n.note(request)
}

func (n fakeNetworks) Attach(_ context.Context, request *godwitv1.AttachEndpointRequest) (*godwitv1.AttachEndpointResponse, error) {
	return &godwitv1.AttachEndpointResponse{Network: blue}, n.note(request)
}

func (n fakeNetworks) Detach(_ context.Context, request *godwitv1.DetachEndpointRequest) (*godwitv1.DetachEndpointResponse, error) {
	return &godwitv1.DetachEndpointResponse{Network: &godwitv1.Network{Name: request.GetNetwork()}}, n.note(request)
}

type fakeMigrations struct {
	godwitv1connect.UnimplementedMigrationServiceHandler
	*fakeServer
}

func after(d time.Duration) *timestamppb.Timestamp { return before(10*time.Minute - d) }

var m1 = &godwitv1.Migration{
	Id: "m1", Vm: "web1", Source: "host-a", Target: "host-b", Epoch: 3, State: "succeeded", Reason: "by hand",
	Connections: 1, Policy: &godwitv1.MigrationPolicy{BandwidthMax: 100 << 20, BlackoutMaxMs: 250, CopyLimitMs: 600_000},
	Created: after(0), Ended: after(5900 * time.Millisecond), Version: 31,
	Outcome: &godwitv1.Outcome{
		TotalMs: 2413, SettledMs: 5900, Passes: 2, Bytes: 279_000_000, BlackoutMs: 12.34, OwnMs: 3.125, FramesDrained: 7, StoppedBy: "agent",
		Phases: []*godwitv1.BlackoutPhase{{Name: "gate", Ms: 0.31}, {Name: "device state", Ms: 9.215}, {Name: "commit", Ms: 1.1}, {Name: "resume", Ms: 1.715}},
	},
	Passes: []*godwitv1.Pass{
		{Number: 1, At: after(400 * time.Millisecond), RemainingBytes: 512 << 20},
		{Number: 2, At: after(2200 * time.Millisecond), SentBytes: 260 << 20, RemainingBytes: 6 << 20},
	},
	Refused: []*godwitv1.RefusedHost{{Host: "host-c", Why: []string{"is cordoned", "lacks machine type pc-q35-10.0"}}},
	Story: []*godwitv1.StoryEntry{
		{At: after(0), Who: "server", Event: "requested", State: "planned", Detail: "host-b scores best"},
		{At: after(2401 * time.Millisecond), Who: "host-a", Event: "source stopped", State: "switching"},
		{At: after(5900 * time.Millisecond), Who: "server", Event: "addresses applied", State: "succeeded"},
	},
}

// inState gives m1 as it was on its way.
func inState(id, state string, pass int32, left uint64) *godwitv1.Migration {
	m := proto.CloneOf(m1)
	m.Id, m.State, m.Ended, m.Outcome, m.Deadline = id, state, nil, nil, before(0)
	if pass > 0 {
		m.Progress = &godwitv1.Progress{
			Pass: pass, SentBytes: 512<<20 - left, RemainingBytes: left, TotalBytes: 512 << 20,
			DirtyBytesPerSecond: 4 << 20, BandwidthBytesPerSecond: 98.5 * (1 << 20), EtaMs: int64(left) >> 17,
		}
	}
	return m
}

func ended(id, state, cause string) *godwitv1.Migration {
	m := proto.CloneOf(m1)
	m.Id, m.State, m.Cause = id, state, cause
	m.Outcome = &godwitv1.Outcome{Passes: 1, Bytes: 1 << 20, FramesReturned: 3}
	return m
}

var aborted = ended("bad", "aborted", "host-b left the substrate")

var stuck = func() *godwitv1.Migration {
	m := ended("stuck", "needs-operator", "neither host answers")
	m.Outcome, m.Remedies = nil, []string{"godwit vm start web1 --host host-a", "godwit vm delete web1"}
	return m
}()

func (fakeMigrations) Get(_ context.Context, request *godwitv1.GetMigrationRequest) (*godwitv1.GetMigrationResponse, error) {
	switch request.GetId() {
	case "m1":
		return &godwitv1.GetMigrationResponse{Migration: m1}, nil
	case "m2":
		return &godwitv1.GetMigrationResponse{Migration: inState("m2", "copying", 2, 6<<20)}, nil
	case "stuck":
		return &godwitv1.GetMigrationResponse{Migration: stuck}, nil
	case "told":
		return &godwitv1.GetMigrationResponse{Migration: told}, nil
	case "undone":
		return &godwitv1.GetMigrationResponse{Migration: undone}, nil
	}
	return nil, missing("show", "migration "+request.GetId())
}

func (m fakeMigrations) List(_ context.Context, request *godwitv1.ListMigrationsRequest) (*godwitv1.ListMigrationsResponse, error) {
	if request.GetOldestFirst() {
		return &godwitv1.ListMigrationsResponse{Migrations: []*godwitv1.Migration{aborted}}, m.note(request)
	}
	all := []*godwitv1.Migration{inState("m2", "copying", 2, 6<<20), m1, aborted, told}
	return &godwitv1.ListMigrationsResponse{Migrations: slices.DeleteFunc(all, func(m *godwitv1.Migration) bool {
		return request.GetVm() != "" && m.GetVm() != request.GetVm()
	})}, nil
}

func (m fakeMigrations) Create(_ context.Context, request *godwitv1.CreateMigrationRequest) (*godwitv1.CreateMigrationResponse, error) {
	id := "m1"
	switch request.GetVm() {
	case "doomed":
		id = "bad"
	case "stuck":
		id = "stuck"
	case "locked":
		return nil, &fleet.Error{Code: fleet.Conflict, Op: "migrate", Subject: "vm locked", Cause: "migration m2 holds it"}
	}
	return &godwitv1.CreateMigrationResponse{Migration: inState(id, "planned", 0, 0)}, m.note(request)
}

func (m fakeMigrations) Cancel(_ context.Context, request *godwitv1.CancelMigrationRequest) (*godwitv1.CancelMigrationResponse, error) {
	return &godwitv1.CancelMigrationResponse{Migration: inState(request.GetId(), "rolling-back", 0, 0)}, m.note(request)
}

func (m fakeMigrations) Watch(ctx context.Context, request *godwitv1.WatchMigrationRequest, stream *connect.ServerStream[godwitv1.WatchMigrationResponse]) error {
	id := request.GetId()
	changes := []*godwitv1.Migration{inState(id, "preparing", 0, 0)}
	for left := uint64(512 << 20); left >= 64<<20; left /= 2 {
		changes = append(changes, inState(id, "copying", 1, left))
	}
	changes = append(changes, inState(id, "copying", 2, 6<<20), inState(id, "switching", 2, 1<<20), inState(id, "settling", 2, 0))
	switch id {
	case "m1":
		changes = append(changes, m1)
	case "bad":
		changes = []*godwitv1.Migration{changes[0], aborted}
	case "stuck":
		changes = []*godwitv1.Migration{stuck}
	case "endless":
	case "flaky":
		switch m.watches.Add(1) {
		case 1:
			changes = changes[:2] // as by a server that is being stopped
		case 2:
			return &fleet.Error{Code: fleet.Unavailable, Cause: "no leader"}
		default:
			changes = []*godwitv1.Migration{changes[2], m1}
		}
	default:
		return missing("watch", "migration "+id)
	}
	for _, change := range changes {
		if err := stream.Send(&godwitv1.WatchMigrationResponse{Migration: change}); err != nil {
			return err
		}
	}
	if id == "endless" {
		<-ctx.Done()
	}
	return ctx.Err()
}

type fakeVolumeServers struct {
	godwitv1connect.UnimplementedVolumeServerServiceHandler
}

func (fakeVolumeServers) List(context.Context, *godwitv1.ListVolumeServersRequest) (*godwitv1.ListVolumeServersResponse, error) {
	return &godwitv1.ListVolumeServersResponse{Servers: []*godwitv1.VolumeServer{
		{Name: "v1", Address: "192.0.2.31", NbdPort: 10809, ControlPort: 7445, SoftwareVersion: "v0.1.0"},
		{Name: "v2", Address: "2001:db8::32", NbdPort: 10810, ControlPort: 7446},
	}}, nil
}
