package server

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// classed says for every call of the API what it is to the lock; "" for what is
// no mutation of the fleet's records, or decided by the events of a migration.
var classed = map[protoreflect.FullName]migration.Request{
	"godwit.v1.VMService.Create": "", // there is no VM that could be locked
	"godwit.v1.VMService.Get":    migration.Read, "godwit.v1.VMService.List": migration.Read, "godwit.v1.VMService.Watch": migration.Read,
	"godwit.v1.VMService.Console": migration.Read, "godwit.v1.VMService.Type": "",
	"godwit.v1.VMService.Start":   migration.StartVM,
	"godwit.v1.VMService.Stop":    migration.StopVM,
	"godwit.v1.VMService.Delete":  migration.DeleteVM,
	"godwit.v1.VMService.AddDisk": migration.ChangeVM, "godwit.v1.VMService.RemoveDisk": migration.ChangeVM,
	"godwit.v1.VMService.AddPort": migration.ChangeVM, "godwit.v1.VMService.RemovePort": migration.ChangeVM,

	"godwit.v1.HostService.Get": migration.Read, "godwit.v1.HostService.List": migration.Read,
	"godwit.v1.HostService.Cordon": migration.ChangeHost, "godwit.v1.HostService.CreateToken": migration.ChangeHost,
	"godwit.v1.HostService.DeclareLost": migration.ChangeHost,

	"godwit.v1.NetworkService.Create": "",
	"godwit.v1.NetworkService.Get":    migration.Read, "godwit.v1.NetworkService.List": migration.Read,
	"godwit.v1.NetworkService.Delete": migration.ChangeNetwork,
	"godwit.v1.NetworkService.Attach": migration.ChangeNetwork, "godwit.v1.NetworkService.Detach": migration.ChangeNetwork,

	"godwit.v1.MigrationService.Create": migration.MigrateVM,
	"godwit.v1.MigrationService.Get":    migration.Read, "godwit.v1.MigrationService.List": migration.Read, "godwit.v1.MigrationService.Watch": migration.Read,
	"godwit.v1.MigrationService.Forecast": migration.Read,
	"godwit.v1.MigrationService.Cancel":   "", "godwit.v1.MigrationService.Return": "",

	"godwit.v1.ServerService.Status": migration.Read, "godwit.v1.ServerService.Backup": migration.Read,
	"godwit.v1.ServerService.AcceptRestore": "", // all migrations end by it
}

// creating are the calls that make something new, and so take a request's id. The
// value tells whether they change no record that was there before.
var creating = map[protoreflect.FullName]bool{
	"godwit.v1.VMService.Create": true, "godwit.v1.NetworkService.Create": true, "godwit.v1.HostService.CreateToken": true,
	"godwit.v1.MigrationService.Create": false,                                       // it locks the VM, and moves it
	"godwit.v1.NetworkService.Attach":   false,                                       // it is in the network's record
	"godwit.v1.VMService.AddDisk":       false, "godwit.v1.VMService.AddPort": false, // it is in the VM's
	"godwit.v1.VMService.RemoveDisk": false, "godwit.v1.VMService.RemovePort": false, // an order that is carried out once
}

// unversioned are the calls that change records of which nobody can mean a version.
var unversioned = map[protoreflect.FullName]string{
	"godwit.v1.VMService.Type":              "it is for the guest, and changes no record",
	"godwit.v1.ServerService.AcceptRestore": "the records are what is not believed; it goes by what the hosts say then, and is a conflict when it was done",
}

// asking are the requests whose handlers ask the lock.
var asking = map[migration.Request]bool{
	migration.StartVM: true, migration.StopVM: true, migration.DeleteVM: true, migration.MigrateVM: true,
	migration.ChangeVM: true,
}

// Nothing is added to the API whose class, and whose protection against being
// done twice or to another version, nobody has thought of.
func TestEveryCallHasAClass(t *testing.T) {
	for _, file := range []protoreflect.FileDescriptor{
		godwitv1.File_godwit_v1_vm_proto, godwitv1.File_godwit_v1_host_proto,
		godwitv1.File_godwit_v1_network_proto, godwitv1.File_godwit_v1_migration_proto,
		godwitv1.File_godwit_v1_server_proto,
	} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			if service.Name() == "EnrollService" {
				continue // certificates, no records
			}
			for j := range service.Methods().Len() {
				checkCall(t, service.Methods().Get(j))
			}
		}
	}
	for _, request := range migration.Requests() {
		for _, state := range migration.States() {
			m := migration.Migration{State: state}
			if class := m.Class(request); class != migration.Allow && !asking[request] {
				t.Errorf("%s in %s is %s, and nobody asks", request, state, class)
			}
		}
	}
}

func checkCall(t *testing.T, method protoreflect.MethodDescriptor) {
	name := method.FullName()
	request, known := classed[name]
	if !known {
		t.Errorf("%s has no class", name)
	}
	anew, creates := creating[name]
	want := map[protoreflect.Name]bool{
		"version":    request != migration.Read && !anew && unversioned[name] == "",
		"request_id": creates,
	}
	for field, wanted := range want {
		if has := method.Input().Fields().ByName(field) != nil; has != wanted {
			t.Errorf("%s, %q to the lock, has the field %s: %t, want %t", name, request, field, has, wanted)
		}
	}
}

func TestMutationsOfAnotherVersion(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	f.network("blue", "10.20.0.0/24")
	f.running(h1, "web2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inPrepare)
	vm := func() int64 { return f.vm("web2").GetVersion() }
	host := func() int64 {
		response, err := f.hosts.Get(t.Context(), &godwitv1.GetHostRequest{Name: "h1"})
		if err != nil {
			t.Fatal(err)
		}
		return response.GetHost().GetVersion()
	}
	network := func() int64 {
		response, err := f.networks.Get(t.Context(), &godwitv1.GetNetworkRequest{Name: "blue"})
		if err != nil {
			t.Fatal(err)
		}
		return response.GetNetwork().GetVersion()
	}
	moved := func() int64 { return fl.await(migration.Preparing).GetVersion() }
	for _, mutation := range []struct {
		name    string
		version func() int64
		call    func(version int64) error
	}{
		{"migrate", vm, func(v int64) error {
			return call(f.moves.Create(t.Context(), &godwitv1.CreateMigrationRequest{Vm: "web2", Version: v}))
		}},
		{"cordon", host, func(v int64) error {
			return call(f.hosts.Cordon(t.Context(), &godwitv1.CordonHostRequest{Name: "h1", Cordoned: true, Version: v}))
		}},
		{"attach", network, func(v int64) error {
			return call(f.networks.Attach(t.Context(), &godwitv1.AttachEndpointRequest{
				Network: "blue", Endpoint: &godwitv1.Endpoint{Name: "gw", Host: "h1", Device: "eth1"}, Version: v,
			}))
		}},
		{"detach", network, func(v int64) error {
			return call(f.networks.Detach(t.Context(), &godwitv1.DetachEndpointRequest{Network: "blue", Endpoint: "gw", Version: v}))
		}},
		{"delete", network, func(v int64) error {
			return call(f.networks.Delete(t.Context(), &godwitv1.DeleteNetworkRequest{Name: "blue", Version: v}))
		}},
		{"cancel", moved, func(v int64) error {
			return call(f.moves.Cancel(t.Context(), &godwitv1.CancelMigrationRequest{Id: fl.id, Version: v}))
		}},
	} {
		now := mutation.version()
		err := mutation.call(now - 1)
		if want := fmt.Sprintf("its record is at version %d, not %d", now, now-1); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), want) {
			t.Errorf("%s of an old version: %v; want %s", mutation.name, err, want)
		}
		if got := mutation.version(); got != now {
			t.Errorf("%s of an old version has changed the record", mutation.name)
		}
		if err := mutation.call(now); err != nil {
			t.Errorf("%s of the present version: %v", mutation.name, err)
		}
	}
	fl.await(migration.RollingBack)
}

func TestReturnOfAnotherVersion(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inRun)
	session := f.server.hub.session("h2")
	h2.close()
	<-session.finished
	now := fl.await(migration.Settling).GetVersion()
	back := func(version int64) error {
		return call(f.moves.Return(t.Context(), &godwitv1.ReturnMigrationRequest{Id: fl.id, HostIsOff: "h2", Version: version}))
	}
	if err := back(now - 1); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), fmt.Sprintf("at version %d, not %d", now, now-1)) {
		t.Errorf("return of an old version: %v", err)
	}
	if err := back(now); err != nil {
		t.Errorf("return of the present version: %v", err)
	}
	fl.await(migration.RollingBack)
}

// What this server remembers of a migration may be older than the record.
func TestCancelOfAVersionThatAnotherServerChanged(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	prepare := fl.next(h2, "prepare_target")
	old := fl.await(migration.Preparing).GetVersion()
	other := newReconciler(f.server.tables, noSessions{}, f.server.addresses, f.server.hub.connected, f.server.foreseer, f.server.log)
	other.CarryOn(t.Context()) // or its timers would outlive the test
	prepared := migration.Event{Kind: migration.TargetPrepared, From: "h2", Answers: prepare.GetSequence(), Port: testPort}
	if _, verdict, err := other.Advance(t.Context(), fleet.MigrationID(fl.id), prepared); err != nil || verdict != migration.Act {
		t.Fatalf("the other server: %s, %v", verdict, err)
	}
	err := call(f.moves.Cancel(t.Context(), &godwitv1.CancelMigrationRequest{Id: fl.id, Version: old}))
	if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), fmt.Sprintf("not %d", old)) {
		t.Errorf("cancel: %v", err)
	}
	if m := fl.await(migration.Copying); m.GetVersion() == old {
		t.Error("the version is the old one")
	}
}
