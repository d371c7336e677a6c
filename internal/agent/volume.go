package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/wire"
)

const (
	// activateOnce bounds one try to activate the leases at a volume server.
	activateOnce = 2 * time.Second
	// The pauses between tries double from the first to the longest.
	activateAgainMin = 20 * time.Millisecond
	activateAgainMax = time.Second
)

// volumesRecord is what a machine needs to use its VM's volumes.
type volumesRecord struct {
	Servers []fleet.VolumeServer `json:"servers"`
	Volumes []fleet.VolumesOf    `json:"volumes"`
	Key     []byte               `json:"key,omitempty"` // of the leases of its epoch; it comes with the right to run
	Until   time.Time            `json:"until"`         // the end of the certificate with which QEMU has opened them
	// Keys are of the volumes that were added while the guest ran, by leaseName: each
	// has one of its own.
	Keys map[string][]byte `json:"keys,omitempty"`
}

// setVolumes notes which volumes the machine has, and where; its record is written
// with them when its ports are made.
func (m *machine) setVolumes(spec fleet.VMSpec, servers []*godwitv1.VolumeServer, key []byte) error {
	volumes := spec.Volumes()
	if len(volumes) == 0 {
		return nil
	}
	next := &volumesRecord{Volumes: volumes, Key: key, Until: m.agent.config.Keeper.NotAfter()}
	for _, message := range servers {
		server, err := wire.DecodeVolumeServer(message)
		if err != nil {
			return err
		}
		next.Servers = append(next.Servers, server)
	}
	for _, of := range volumes {
		if _, err := next.server(of.Server); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.record.Volumes = next
	return nil
}

// setVolumeKey notes the key of the leases, without writing it.
func (m *machine) setVolumeKey(key []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.record.Volumes != nil && len(key) > 0 {
		next := *m.record.Volumes
		next.Key = key
		m.record.Volumes = &next
	}
}

func (v *volumesRecord) server(name fleet.VolumeServerName) (fleet.VolumeServer, error) {
	at := slices.IndexFunc(v.Servers, func(s fleet.VolumeServer) bool { return s.Name == name })
	if at < 0 {
		return fleet.VolumeServer{}, &fleet.Error{
			Code: fleet.Invalid, Op: "find", Subject: "volume server " + string(name), Cause: "the server did not say where it is",
		}
	}
	return v.Servers[at], nil
}

// qemuVolume gives a disk's volume as QEMU is told of it: by the epoch in the
// export's name.
func (v *volumesRecord) qemuVolume(disk fleet.Disk, epoch fleet.Epoch) (*qemu.Volume, error) {
	server, err := v.server(disk.Server)
	return &qemu.Volume{
		Server: server.NBD, TLSHostname: pki.VolumeServerName(string(server.Name)), Export: fmt.Sprintf("%s@%d", disk.Volume, epoch),
	}, err
}

// activate makes the leases of an epoch active, with the key that the machine has:
// from then on no instance of an older epoch can write. A volume server that is away
// is waited for until ctx ends. It may be called again.
func (m *machine) activate(ctx context.Context, epoch fleet.Epoch) error {
	m.mu.Lock()
	volumes := m.record.Volumes
	m.mayWrite = m.mayWrite || volumes != nil
	m.mu.Unlock()
	if volumes == nil {
		return nil
	}
	var group errgroup.Group
	for _, of := range volumes.leases() {
		group.Go(func() error { return m.agent.activate(ctx, volumes, of, epoch) })
	}
	return group.Wait()
}

// activate activates the leases of an epoch at one volume server.
func (a *Agent) activate(ctx context.Context, volumes *volumesRecord, of keyedVolumes, epoch fleet.Epoch) error {
	request := &godwitv1.ActivateLeasesRequest{Epoch: uint64(epoch), Key: of.key}
	for _, volume := range of.Volumes {
		request.Volumes = append(request.Volumes, string(volume))
	}
	server, err := volumes.server(of.Server)
	if err != nil {
		return err
	}
	for pause := activateAgainMin; ; pause = min(2*pause, activateAgainMax) {
		err := a.askVolumes(ctx, server, request)
		switch fleet.CodeOf(err) {
		case fleet.Unavailable, fleet.Deadline:
		default:
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

func (a *Agent) askVolumes(ctx context.Context, server fleet.VolumeServer, request *godwitv1.ActivateLeasesRequest) error {
	ctx, cancel := context.WithTimeout(ctx, activateOnce)
	defer cancel()
	one, err := a.volumes.client(server)
	if err == nil {
		_, err = one.Activate(ctx, request)
	}
	if err == nil {
		return nil
	}
	return &fleet.Error{
		Code: cmp.Or(fleet.CodeOf(err), fleet.Failed), Op: "use volumes " + strings.Join(request.GetVolumes(), " and "), Subject: "of volume server " + string(server.Name),
		Hint: "see that godwit volume serve runs there", Err: err,
	}
}

// activateUnrun activates the leases of an instance whose start may have been cut
// off before that.
func (m *machine) activateUnrun(ctx context.Context, instance *qemu.Instance) error {
	state, err := instance.Status(ctx)
	if err != nil || state.Running() || state.Failing() {
		return err
	}
	return m.activate(ctx, m.key.epoch)
}

// mayHaveWritten tells whether the leases may have been activated: by then the source
// can't go on by itself. An earlier agent may have done it, and nobody wrote it down:
// that would be in the blackout.
func (m *machine) mayHaveWritten() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mayWrite
}

// warmVolumes has the connections ready by which the leases will be activated, since
// the guest stands still then.
func (m *machine) warmVolumes(ctx context.Context) {
	m.mu.Lock()
	volumes := m.record.Volumes
	m.mu.Unlock()
	if volumes == nil {
		return
	}
	for _, server := range volumes.Servers {
		go func() {
			if err := m.agent.askVolumes(ctx, server, &godwitv1.ActivateLeasesRequest{}); err != nil && ctx.Err() == nil {
				m.agent.log.Warn("a volume server does not answer", "vm", m.key.vm, "server", server.Name, "error", err)
			}
		}()
	}
}

// moveVolumes makes the instance, of which the VM was given back to this host, use
// the volumes at a new epoch. A guest that runs meanwhile is stopped for that: what
// it has written counts by the older lease, as long as that does.
func (m *machine) moveVolumes(ctx context.Context, epoch fleet.Epoch, want *godwitv1.ResumeSource) error {
	if m.record.Volumes == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	state, err := m.instance.Status(ctx)
	if err != nil {
		return err
	}
	if state.Running() {
		if err := m.instance.Stop(ctx); err != nil {
			return err
		}
	}
	err = m.moveStopped(ctx, epoch, want)
	if err != nil && state.Running() { // it goes on as far as its volumes let it
		resuming, cancel := context.WithTimeout(m.life, runWithin)
		defer cancel()
		_, again := m.instance.Resume(resuming)
		err = errors.Join(err, again)
	}
	return err
}

func (m *machine) moveStopped(ctx context.Context, epoch fleet.Epoch, want *godwitv1.ResumeSource) error {
	volumes := m.record.Volumes
	if err := m.setVolumes(fleet.VMSpec{Disks: disksOf(volumes.Volumes)}, want.GetVolumeServers(), want.GetVolumeKey()); err != nil {
		return err
	}
	if err := m.openVolumes(ctx, epoch); err != nil {
		return err
	}
	return m.activate(ctx, epoch)
}

// openVolumes makes QEMU open the exports of an epoch, with the host's present
// certificate, in place of those that it has.
func (m *machine) openVolumes(ctx context.Context, epoch fleet.Epoch) error {
	creds, err := m.credentials()
	if err != nil {
		return err
	}
	to := map[string]qemu.Volume{}
	for _, disk := range m.instance.Config().Disks {
		if disk.Volume == nil {
			continue
		}
		one := diskOf(disk)
		server, err := m.record.Volumes.server(one.Server)
		if err != nil {
			return err
		}
		to[disk.Name] = qemu.Volume{Server: server.NBD, TLSHostname: disk.Volume.TLSHostname, Export: fmt.Sprintf("%s@%d", one.Volume, epoch)}
	}
	return m.instance.MoveVolumes(ctx, to, creds)
}

// disksOf gives disks that are these volumes.
func disksOf(volumes []fleet.VolumesOf) (disks []fleet.Disk) {
	for _, of := range volumes {
		for _, volume := range of.Volumes {
			disks = append(disks, fleet.Disk{Kind: fleet.DiskVolume, Server: of.Server, Volume: volume})
		}
	}
	return disks
}

// volumeClients are clients of volume servers, which are kept.
type volumeClients struct {
	keeper *pki.Keeper

	mu      sync.Mutex
	clients map[string]*client.VolumeServer // by name and address
}

func newVolumeClients(keeper *pki.Keeper) *volumeClients {
	return &volumeClients{keeper: keeper, clients: map[string]*client.VolumeServer{}}
}

func (v *volumeClients) client(server fleet.VolumeServer) (*client.VolumeServer, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	key := string(server.Name) + " " + server.Control.String()
	if known := v.clients[key]; known != nil {
		return known, nil
	}
	one, err := client.DialVolumeServer(client.Config{
		Server: "https://" + server.Control.String(), DialTimeout: activateOnce,
		TLS: v.keeper.ClientConfig(pki.Expect{Kind: pki.Volume, Name: string(server.Name)}),
	})
	if err == nil {
		v.clients[key] = one
	}
	return one, err
}

func (v *volumeClients) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, one := range v.clients {
		one.Close()
	}
}
