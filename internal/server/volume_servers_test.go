package server

import (
	"testing"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/wire"
)

// volumeServers is what a member of an identity asks of volume servers.
func (f *testFleet) volumeServers(id pki.Identity) godwitv1connect.VolumeServerServiceClient {
	return godwitv1connect.NewVolumeServerServiceClient(f.client(f.clientConfig(f.keeper(id, 0))), f.url(),
		connect.WithInterceptors(wire.ClientInterceptor(f.url())))
}

// What a volume server says of itself is what is known, and only its certificate
// says which it is.
func TestVolumeServersAnnounce(t *testing.T) {
	f := newFleet(t)
	v1 := f.volumeServers(pki.Identity{Kind: pki.Volume, Name: "v1"})
	for _, said := range []*godwitv1.VolumeServer{
		{Name: "v2", Address: "10.0.0.31", NbdPort: 10809, ControlPort: 7445},
		{Address: "10.0.0.32", NbdPort: 10809, ControlPort: 7445, SoftwareVersion: "v1"},
		{Address: "10.0.0.32", NbdPort: 10809, ControlPort: 7445, SoftwareVersion: "v1"},
	} {
		if _, err := v1.Announce(t.Context(), &godwitv1.AnnounceVolumeServerRequest{Server: said}); err != nil {
			t.Fatal(err)
		}
	}
	for name, said := range map[string]*godwitv1.VolumeServer{
		"nothing": nil, "no address": {NbdPort: 1, ControlPort: 2}, "any address": {Address: "0.0.0.0", NbdPort: 1, ControlPort: 2},
		"a name": {Address: "v1.example", NbdPort: 1, ControlPort: 2}, "no port": {Address: "10.0.0.32", NbdPort: 1},
		"no such port": {Address: "10.0.0.32", NbdPort: 1 << 16, ControlPort: 1},
	} {
		if _, err := v1.Announce(t.Context(), &godwitv1.AnnounceVolumeServerRequest{Server: said}); fleet.CodeOf(err) != fleet.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	list, err := f.volumeServers(pki.Identity{Kind: pki.Admin, Name: "root"}).List(t.Context(), &godwitv1.ListVolumeServersRequest{})
	if err != nil || len(list.GetServers()) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	if one := list.GetServers()[0]; one.GetName() != "v1" || one.GetAddress() != "10.0.0.32" || one.GetNbdPort() != 10809 || one.GetControlPort() != 7445 {
		t.Errorf("known is %v", one)
	}
}
