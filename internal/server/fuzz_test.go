package server

import (
	"encoding/json"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/reconcile"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// FuzzSession reads whatever an agent may send, and demands that what is kept of
// it can be stored and read again.
func FuzzSession(f *testing.F) {
	add := func(message *godwitv1.SessionRequest) {
		text, err := proto.Marshal(message)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	add(helloOf("h1"))
	for _, op := range []string{"prepare_target", "start_copy", "run_target", "resume_source", "release_target"} {
		report := usualAnswer(op)
		report.Subject = "m-1"
		add(reportOf(report))
	}
	add(networksMessage(&godwitv1.HostNetworks{Bridges: []*godwitv1.Bridge{bridge("br0"), {Name: "..", Mtu: -1}}, UnderlayMtu: -1}))
	f.Add([]byte("\x12\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, text []byte) {
		message := &godwitv1.SessionRequest{}
		if proto.Unmarshal(text, message) != nil || checkMessage(message) != nil {
			return
		}
		if host, err := decodeHello("h1", message.GetHello()); err == nil {
			checkStored(t, host)
		}
		networks := wire.DecodeHostNetworks(message.GetNetworks())
		if path, _ := checkHostNetworks(networks); path == "" {
			checkStored(t, networks)
		}
		report := message.GetReport()
		if report == nil || checkNames(report) != nil {
			return
		}
		event, known := reconcile.EventOf(report)
		if !known {
			return
		}
		event.At, event.Answers = time.Now(), 2
		for _, state := range []migration.State{migration.Copying, migration.Switching, migration.Settling} {
			m := migration.Migration{ID: "m-1", VM: "web1", Source: "h1", Target: "h2", State: state, Pending: []migration.Effect{
				{Sequence: 2, Kind: migration.StartCopy, Host: "h1"}, {Sequence: 2, Kind: migration.RunTarget, Host: "h2"},
			}}
			next, _, _ := migration.Step(m, event)
			checkStored(t, next)
			migrationMessage(store.Entry[migration.Migration]{Value: next})
		}
	})
}

func checkStored[T any](t *testing.T, value T) {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatalf("it cannot be stored: %v", err)
	}
	var again T
	if err := json.Unmarshal(text, &again); err != nil {
		t.Errorf("it cannot be read again: %v", err)
	}
}

// FuzzRecords puts anything in the place of records: whoever reads them is told,
// and the mirror goes on.
func FuzzRecords(f *testing.F) {
	f.Add("migrations/m-1", []byte(`{"id": "m-1", "state": "copying", "timer": {"at": "2026-01-01T00:00:00Z"}}`))
	f.Add("vms/web1", []byte(`{"name": "web1", "spec": {"memory": "1e400"}}`))
	f.Add("hosts/h1", []byte(`{"address": "nowhere"}`))
	f.Add("networks/blue", []byte(`{"subnets": ["10.0.0.0/99"]}`))
	f.Add("networks/prod", []byte(`{"bridge": "br0", "vlan": 70000}`))
	f.Add("counters/generation", []byte(`-1`))
	f.Add("restores/pending", []byte(`null`))
	f.Add("leader", []byte(`{"url": 7}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		m := newMirror(newTables(nil), nil)
		m.vms, m.hosts = map[fleet.VMName]store.Entry[fleet.VM]{}, map[fleet.HostName]fleet.Host{}
		m.networks, m.migrations = map[fleet.NetworkName]fleet.Network{}, map[fleet.MigrationID]move{}
		_ = m.put(store.Event{Record: store.Record{Key: key, Value: value, Version: 1}})
		m.addressMaps()
		entry, err := m.tables.migrations.Decode(store.Record{Key: key, Value: value})
		if err == nil {
			entry.Value.FreeIn(time.Now())
			entry.Value.Over()
			migrationMessage(entry)
		}
	})
}

// FuzzCaller reads in whose name another server calls.
func FuzzCaller(f *testing.F) {
	f.Add("host/h1")
	f.Add("/")
	f.Fuzz(func(_ *testing.T, text string) { onBehalf(text) })
}
