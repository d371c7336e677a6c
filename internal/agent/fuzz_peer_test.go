package agent

import (
	"context"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/wire"
)

// FuzzPeer reads what another host may ask of a target: only its own source gets
// to it, only for its own migration, and frames go to an address or nowhere.
func FuzzPeer(f *testing.F) {
	for _, seed := range []*godwitv1.ReturnFramesRequest{
		{Migration: "m-1", Vm: "web1", Epoch: 2, SourceAddress: "10.0.0.1"}, {Migration: "m-1", Vm: "web1", Epoch: 2, SourceAddress: "nowhere"},
		{Migration: "m-2", Vm: "web1", Epoch: 2}, {Migration: "m-1", Vm: "../web1", Epoch: 2}, {Migration: "m-1", Vm: "web1", Epoch: 1<<64 - 1}, {},
	} {
		text, err := proto.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("h1", text)
		f.Add("h9", text)
	}
	own := &machine{key: machineKey{"web1", 2}, record: record{Migration: "m-1", Role: refused, Peer: peerRecord{Host: "h1"}}}
	s := peerService{&Agent{config: Config{Name: "h2"}, machines: map[machineKey]*machine{own.key: own}}}
	f.Fuzz(func(t *testing.T, caller string, text []byte) {
		request := &godwitv1.ReturnFramesRequest{} // GiveUp's has the same fields, but for the last
		if proto.Unmarshal(text, request) != nil {
			return
		}
		ctx := calledBy(t, pki.Identity{Kind: pki.Host, Name: caller})
		m, err := s.target(ctx, request.GetMigration(), request.GetVm(), request.GetEpoch())
		entitled := caller == "h1" && request.GetMigration() == "m-1" && request.GetVm() == "web1" && request.GetEpoch() == 2
		if (m != nil) != entitled || (err == nil) != entitled {
			t.Errorf("%s got %v, %v with %v", caller, m, err, request)
		}
		_, wrong := netip.ParseAddr(request.GetSourceAddress())
		if _, err := own.drainTo(ctx, request.GetSourceAddress()); wrong != nil && fleet.CodeOf(err) != fleet.Invalid {
			t.Errorf("to %q: %v", request.GetSourceAddress(), err)
		}
	})
}

// calledBy is the context of a call.
func calledBy(t *testing.T, who pki.Identity) context.Context {
	return context.WithValue(t.Context(), callerKey{}, peerCaller{Identity: who})
}

// FuzzConsole types what nobody would send: no instance hears of it but the one that
// is named, and only from a server.
func FuzzConsole(f *testing.F) {
	for _, seed := range []*godwitv1.WriteConsoleRequest{
		{Vm: "web1", Epoch: 2, Uid: "u1", Input: []byte("x")}, {Vm: "web1", Epoch: 2, Uid: "u2"},
		{Vm: "web1", Epoch: 1, Uid: "u1"}, {Vm: "web1", Epoch: 2, Uid: "u1", Input: make([]byte, wire.TypeMax+1)},
	} {
		text, err := proto.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		for _, kind := range []pki.Kind{pki.Server, pki.Host, pki.Admin} {
			f.Add(string(kind), text)
		}
	}
	own := &machine{key: machineKey{"web1", 2}, uid: "u1", dir: f.TempDir(), life: f.Context()}
	s := consoleService{&Agent{config: Config{Name: "h1"}, machines: map[machineKey]*machine{own.key: own}}}
	f.Fuzz(func(t *testing.T, kind string, text []byte) {
		request := &godwitv1.WriteConsoleRequest{}
		if proto.Unmarshal(text, request) != nil {
			return
		}
		want := fleet.Unavailable // nobody listens there
		switch {
		case kind != string(pki.Server):
			want = fleet.Denied
		case request.GetVm() != "web1" || request.GetEpoch() != 2 || request.GetUid() != "u1":
			want = fleet.NotFound
		case len(request.GetInput()) > wire.TypeMax:
			want = fleet.Invalid
		}
		_, err := s.Write(calledBy(t, pki.Identity{Kind: pki.Kind(kind), Name: "n1"}), request)
		if fleet.CodeOf(err) != want {
			t.Errorf("from a %s: %v, want %s, with %v", kind, err, want, request)
		}
	})
}
