package qmp_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"godwit.dev/godwit/internal/qmp"
)

// The replies in testdata are what real QEMUs wrote. To record them anew:
//
//	go test -run TestRecord -record qemu-system-x86_64 -record-as 10.0
var (
	recordFrom = flag.String("record", "", "QEMU to record replies of")
	recordAs   = flag.String("record-as", "", "folder of testdata/replies to record to")
)

// recorder writes what a QEMU answers.
type recorder struct {
	t   *testing.T
	dir string
}

func (r recorder) write(name string, reply json.RawMessage) {
	r.t.Helper()
	text, err := json.MarshalIndent(reply, "", " ")
	if err == nil {
		err = os.WriteFile(filepath.Join(r.dir, name+".json"), append(text, '\n'), 0o644)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// ask records the reply to a command; name is the command or command@variant.
func (r recorder) ask(c *qmp.Client, name, command string, args any) {
	r.t.Helper()
	var reply json.RawMessage
	if err := c.Execute(r.t.Context(), command, args, &reply); err != nil {
		r.t.Fatal(err)
	}
	r.write(name, reply)
}

func TestRecord(t *testing.T) {
	if *recordFrom == "" {
		t.Skip("no -record")
	}
	r := recorder{t: t, dir: filepath.Join("testdata", "replies", *recordAs)}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	source, target := record(t), record(t, "-incoming", "defer")
	events := source.Subscribe(100)
	defer events.Close()
	r.ask(source, "query-migrate@none", "query-migrate", nil)
	must(t, qmp.Cont(t.Context(), source))
	must(t, qmp.CalcDirtyRate(t.Context(), source, qmp.CalcDirtyRateArgs{CalcTime: 1}))
	for _, command := range []string{
		"query-version", "query-status", "query-machines", "query-cpu-definitions", "query-kvm", "query-migrate-capabilities",
		"query-migrate-parameters", "query-dirty-rate", "query-yank", "query-block", "query-named-block-nodes", "query-pci", "query-rx-filter",
	} {
		r.ask(source, command, command, nil)
	}
	r.ask(source, "query-cpu-model-expansion", "query-cpu-model-expansion",
		qmp.QueryCPUModelExpansionArgs{Type: qmp.CPUModelExpansionTypeStatic, Model: qmp.QueryCPUModelExpansionArgsModel{Name: "qemu64"}})
	r.ask(source, "qom-list", "qom-list", qmp.QOMListArgs{Path: "/objects"})
	r.migrate(source, target)
	must(t, qmp.SystemReset(t.Context(), source))
	must(t, qmp.SystemPowerdown(t.Context(), source))
	must(t, qmp.Quit(t.Context(), source))
	for event := range events.Events() {
		if len(event.Data) > 0 {
			r.write("event@"+event.Name, event.Data)
		}
	}
}

func (r recorder) migrate(source, target *qmp.Client) {
	t, ctx := r.t, r.t.Context()
	on := qmp.MigrateSetCapabilitiesArgs{Capabilities: []qmp.MigrationCapabilityStatus{
		{Capability: qmp.MigrationCapabilityEvents, State: true}, {Capability: qmp.MigrationCapabilityReturnPath, State: true},
		{Capability: qmp.MigrationCapabilityPauseBeforeSwitchover, State: true}, {Capability: qmp.MigrationCapabilityXBZRLE, State: true},
	}}
	must(t, qmp.MigrateSetCapabilities(ctx, source, on))
	must(t, qmp.MigrateSetCapabilities(ctx, target, on))
	must(t, qmp.MigrateIncoming(ctx, target, qmp.MigrateIncomingArgs{URI: new("tcp:127.0.0.1:0")}))
	r.ask(target, "query-migrate@listening", "query-migrate", nil)
	r.ask(target, "query-yank@listening", "query-yank", nil)
	now, err := qmp.QueryMigrate(ctx, target)
	must(t, err)
	must(t, qmp.MigrateSetParameters(ctx, source, qmp.MigrateSetParametersArgs{MaxBandwidth: new(int64(1 << 10))}))
	events := source.Subscribe(100, qmp.EventMigration)
	defer events.Close()
	must(t, qmp.Migrate(ctx, source, qmp.MigrateArgs{URI: new("tcp:" + net.JoinHostPort("127.0.0.1", *now.SocketAddress[0].Port))}))
	awaitStatus(t, events, qmp.MigrationStatusActive)
	r.ask(source, "query-migrate@active", "query-migrate", nil)
	must(t, qmp.MigrateSetParameters(ctx, source, qmp.MigrateSetParametersArgs{MaxBandwidth: new(int64(1 << 40))}))
	awaitStatus(t, events, qmp.MigrationStatusPreSwitchover)
	r.ask(source, "query-migrate@pre-switchover", "query-migrate", nil)
	r.ask(source, "query-status@finish-migrate", "query-status", nil)
	must(t, qmp.MigrateContinue(ctx, source, qmp.MigrateContinueArgs{State: qmp.MigrationStatusPreSwitchover}))
	awaitStatus(t, events, qmp.MigrationStatusCompleted)
	r.ask(source, "query-migrate@completed", "query-migrate", nil)
	r.ask(target, "query-migrate@loaded", "query-migrate", nil)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func awaitStatus(t *testing.T, events *qmp.Subscription, want qmp.MigrationStatus) {
	t.Helper()
	for event := range events.Events() {
		var data qmp.MigrationEvent
		must(t, event.Decode(&data))
		if data.Status == want {
			return
		}
	}
	t.Fatalf("waiting for %s: %v", want, events.Err())
}

// record starts a QEMU of the kind that is recorded.
func record(t *testing.T, more ...string) *qmp.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmp")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	disk, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "qmp.sock")
	must(t, exec.Command("qemu-img", "create", "-q", "-f", "qcow2", disk, "1M").Run())
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	must(t, err)
	file, err := listener.File()
	must(t, err)
	command := exec.Command(*recordFrom, append([]string{
		"-machine", "pc,accel=tcg", "-m", "64", "-nodefaults", "-display", "none", "-S", "-object", "authz-simple,id=peer,identity=CN=h1",
		"-blockdev", fmt.Sprintf(`{"driver":"qcow2","node-name":"disk0","file":{"driver":"file","filename":%q}}`, disk),
		"-device", "virtio-blk-pci,drive=disk0", "-netdev", "hubport,id=nic0,hubid=0", "-device", "virtio-net-pci,netdev=nic0,romfile=",
		"-chardev", "socket,id=qmp,server=on,wait=off,fd=3", "-mon", "chardev=qmp,mode=control",
	}, more...)...)
	command.ExtraFiles, command.Stderr = []*os.File{file}, os.Stderr
	must(t, command.Start())
	t.Cleanup(func() { _ = command.Process.Kill(); _ = command.Wait() })
	listener.SetUnlinkOnClose(false)
	listener.Close()
	file.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	client, err := qmp.Dial(ctx, socket)
	must(t, err)
	t.Cleanup(func() { client.Close() })
	return client
}
