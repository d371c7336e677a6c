package volumeserver

import (
	"context"
	"net/http"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/volume"
)

// callerKey is the key of who calls, in a call's context.
type callerKey struct{}

func withCaller(r *http.Request, caller pki.Identity) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, caller))
}

// byCertificate makes known who calls by TLS.
func byCertificate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if caller, err := pki.FromConnectionState(*r.TLS); err == nil {
			r = withCaller(r, caller)
		}
		next.ServeHTTP(w, r)
	})
}

// bySocket makes every caller an administrator: the mode of the socket's folder
// is what admits them.
func bySocket(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, withCaller(r, pki.Identity{Kind: pki.Admin, Name: "socket"}))
	})
}

// rule demands a caller that may manage volumes and leases.
func rule(ctx context.Context) error {
	caller, _ := ctx.Value(callerKey{}).(pki.Identity)
	if caller.Kind == pki.Admin || caller.Kind == pki.Server {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Denied, Op: "call", Subject: "volume server", Cause: caller.String() + " may not do this",
		Hint: "use the volume server's socket, or an administrator's certificate",
	}
}

// service answers for the volumes of one server.
type service struct{ store *volume.Store }

func (s service) Create(ctx context.Context, request *godwitv1.CreateVolumeRequest) (*godwitv1.CreateVolumeResponse, error) {
	if err := rule(ctx); err != nil {
		return nil, err
	}
	info, err := s.store.Create(fleet.VolumeName(request.GetName()), fleet.Bytes(request.GetSizeBytes()), request.GetDevice())
	if err != nil {
		return nil, err
	}
	return &godwitv1.CreateVolumeResponse{Volume: message(info)}, nil
}

func (s service) Grow(ctx context.Context, request *godwitv1.GrowVolumeRequest) (*godwitv1.GrowVolumeResponse, error) {
	if err := rule(ctx); err != nil {
		return nil, err
	}
	info, err := s.store.Grow(fleet.VolumeName(request.GetName()), fleet.Bytes(request.GetSizeBytes()))
	if err != nil {
		return nil, err
	}
	return &godwitv1.GrowVolumeResponse{Volume: message(info)}, nil
}

func (s service) Delete(ctx context.Context, request *godwitv1.DeleteVolumeRequest) (*godwitv1.DeleteVolumeResponse, error) {
	if err := rule(ctx); err != nil {
		return nil, err
	}
	return &godwitv1.DeleteVolumeResponse{}, s.store.Delete(fleet.VolumeName(request.GetName()))
}

func (s service) List(ctx context.Context, _ *godwitv1.ListVolumesRequest) (*godwitv1.ListVolumesResponse, error) {
	if err := rule(ctx); err != nil {
		return nil, err
	}
	response := &godwitv1.ListVolumesResponse{}
	for _, info := range s.store.List() {
		response.Volumes = append(response.Volumes, message(info))
	}
	return response, nil
}

func (s service) Grant(ctx context.Context, request *godwitv1.GrantLeaseRequest) (*godwitv1.GrantLeaseResponse, error) {
	if err := rule(ctx); err != nil {
		return nil, err
	}
	_, err := s.store.Grant(fleet.VolumeName(request.GetVolume()), volume.Standby{
		Epoch: fleet.Epoch(request.GetEpoch()), Host: fleet.HostName(request.GetHost()), Key: volume.KeyHash(request.GetKeyHash()),
	})
	return &godwitv1.GrantLeaseResponse{}, err
}

// Activate is the one call that a host makes itself: it is in the blackout.
func (s service) Activate(ctx context.Context, request *godwitv1.ActivateLeasesRequest) (*godwitv1.ActivateLeasesResponse, error) {
	host := request.GetHost()
	if caller, _ := ctx.Value(callerKey{}).(pki.Identity); caller.Kind == pki.Host && (host == "" || host == caller.Name) {
		host = caller.Name
	} else if err := rule(ctx); err != nil {
		return nil, err
	}
	names := make([]fleet.VolumeName, 0, len(request.GetVolumes()))
	for _, name := range request.GetVolumes() {
		names = append(names, fleet.VolumeName(name))
	}
	return &godwitv1.ActivateLeasesResponse{}, s.store.Activate(names, fleet.Epoch(request.GetEpoch()), fleet.HostName(host), request.GetKey())
}

func (s service) Release(ctx context.Context, request *godwitv1.ReleaseLeaseRequest) (*godwitv1.ReleaseLeaseResponse, error) {
	if err := rule(ctx); err != nil {
		return nil, err
	}
	_, err := s.store.Release(fleet.VolumeName(request.GetVolume()), fleet.Epoch(request.GetEpoch()), volume.KeyHash(request.GetKeyHash()))
	return &godwitv1.ReleaseLeaseResponse{}, err
}

func message(info volume.Info) *godwitv1.Volume {
	v := &godwitv1.Volume{
		Name: string(info.Name), SizeBytes: uint64(info.Size), AllocatedBytes: uint64(info.Allocated), Device: info.Device,
		Connections: int32(info.Connections), Epoch: uint64(info.Lease.Epoch), Holder: string(info.Lease.Holder), Problem: info.Problem,
	}
	for _, standby := range info.Lease.Standbys {
		v.Standbys = append(v.Standbys, &godwitv1.StandbyLease{Epoch: uint64(standby.Epoch), Host: string(standby.Host)})
	}
	return v
}
