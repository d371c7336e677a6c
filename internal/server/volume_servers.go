package server

import (
	"context"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// volumeServerService is the API of what is known of volume servers.
type volumeServerService struct{ server *Server }

// Announce writes what a volume server says of itself, if it is news.
func (v volumeServerService) Announce(ctx context.Context, request *godwitv1.AnnounceVolumeServerRequest) (*godwitv1.AnnounceVolumeServerResponse, error) {
	name, said := callerOf(ctx).identity.Name, request.GetServer()
	if said == nil {
		return nil, invalidField("announce", "volume server "+name, "server", "is missing")
	}
	said.Name = name
	server, err := wire.DecodeVolumeServer(said)
	if err != nil {
		return nil, err
	}
	servers := v.server.tables.volumeServers
	for range store.MaxConflicts {
		entry, err := servers.Get(ctx, name)
		if err != nil && fleet.CodeOf(err) != fleet.NotFound {
			return nil, err
		}
		if entry.Value == server {
			return &godwitv1.AnnounceVolumeServerResponse{}, nil
		}
		_, err = v.server.tables.store.Commit(ctx, store.If(servers.At(name, entry.Version)), servers.Put(name, server))
		if fleet.CodeOf(err) == fleet.Conflict {
			continue
		}
		if err == nil {
			v.server.log.Info("volume server", "name", name, "nbd", server.NBD, "control", server.Control)
		}
		return &godwitv1.AnnounceVolumeServerResponse{}, err
	}
	return nil, tooManyConflicts("announce", "volume server "+name)
}

func (v volumeServerService) List(ctx context.Context, _ *godwitv1.ListVolumeServersRequest) (*godwitv1.ListVolumeServersResponse, error) {
	entries, _, err := v.server.tables.volumeServers.All(ctx)
	if err != nil {
		return nil, err
	}
	response := &godwitv1.ListVolumeServersResponse{}
	for _, entry := range entries {
		response.Servers = append(response.Servers, wire.EncodeVolumeServer(entry.Value))
	}
	return response, nil
}

// mayAskOfVolumeServers: each says where it is, and an administrator asks.
func mayAskOfVolumeServers(who pki.Identity, announces bool) bool {
	if announces {
		return who.Kind == pki.Volume
	}
	return who.Kind == pki.Admin
}
