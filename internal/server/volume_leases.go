package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/leases"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

const (
	// grantTargetWithin is how long a volume server may be away while a target is
	// prepared: the guest runs on, and a migration can be asked for again.
	grantTargetWithin = 10 * time.Second
	grantAgainEvery   = 500 * time.Millisecond
)

func (s *Server) newLeases() *leases.Book {
	return leases.New(leases.Config{
		Store: s.tables.store, Servers: s.tables.volumeServers, Log: s.log,
		Dial: func(server fleet.VolumeServer) (leases.VolumeServer, error) {
			return client.DialVolumeServer(client.Config{
				Server: "https://" + server.Control.String(),
				TLS:    s.certificate.ClientConfig(pki.Expect{Kind: pki.Volume, Name: string(server.Name)}),
			})
		},
	})
}

// passesSoon tells refusals of a volume server that it may not repeat.
func passesSoon(err error) bool {
	switch fleet.CodeOf(err) {
	case fleet.Unavailable, fleet.Deadline, fleet.Exhausted:
		return true
	}
	return false
}

// leasing sends hosts what they do in migrations. What makes an instance connect to
// volumes is sent when their leases are granted, without anybody's waiting for that.
type leasing struct {
	hub  *hub
	book *leases.Book
	vm   func(fleet.VMName) (store.Entry[fleet.VM], bool)
	// wanted tells whether a target is still to be prepared, and failed hears why it
	// can't be.
	wanted func(*godwitv1.Command) bool
	failed func(*godwitv1.Command, error)
	log    func(command *godwitv1.Command, err error)

	mu    sync.Mutex
	under map[string]bool // commands whose leases are being granted
}

func (s *Server) newLeasing() *leasing {
	return &leasing{
		hub: s.hub, book: s.leases, vm: s.mirror.VM, wanted: s.targetWanted, failed: s.targetUnleased, under: map[string]bool{},
		log: func(command *godwitv1.Command, err error) {
			s.log.Warn("a command waits for leases of volumes", "migration", command.GetSubject(), "sequence", command.GetSequence(), "error", err)
		},
	}
}

// Send implements reconcile.Commander.
func (l *leasing) Send(host fleet.HostName, command *godwitv1.Command) error {
	lease, needed := l.leaseFor(host, command)
	if !needed || !l.hub.connected(host) {
		return l.hub.Send(host, command)
	}
	key := fmt.Sprintf("%s/%d", command.GetSubject(), command.GetSequence())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.under[key] {
		return nil
	}
	l.under[key] = true
	go func() {
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			delete(l.under, key)
		}()
		l.grantAndSend(host, command, lease)
	}()
	return nil
}

// leaseFor gives the lease that a command needs.
func (l *leasing) leaseFor(host fleet.HostName, command *godwitv1.Command) (lease leases.Lease, needed bool) {
	lease = leases.Lease{
		UID: fleet.InstanceUID(command.GetUid()), Host: host, Migration: fleet.MigrationID(command.GetSubject()),
	}
	switch op := command.GetOp().(type) {
	case *godwitv1.Command_PrepareTarget:
		instance := op.PrepareTarget.GetInstance()
		spec, err := wire.DecodeSpec(instance.GetSpec())
		lease.VM, lease.Epoch, lease.Volumes = fleet.VMName(instance.GetVm()), fleet.Epoch(instance.GetEpoch()), spec.Volumes()
		return lease, err == nil && len(lease.Volumes) > 0
	case *godwitv1.Command_ResumeSource:
		entry, _ := l.vm(fleet.VMName(op.ResumeSource.GetVm()))
		lease.VM, lease.Epoch, lease.Volumes = entry.Value.Name, fleet.Epoch(op.ResumeSource.GetNewEpoch()), entry.Value.Spec.Volumes()
		return lease, lease.Epoch > 0 && len(lease.Volumes) > 0
	case *godwitv1.Command_RunTarget:
		entry, _ := l.vm(fleet.VMName(op.RunTarget.GetVm()))
		lease.VM, lease.Epoch, lease.Volumes = entry.Value.Name, fleet.Epoch(command.GetEpoch()+1), entry.Value.Spec.Volumes()
		return lease, len(lease.Volumes) > 0
	}
	return lease, false
}

// grant gives a lease; again, while that is wanted and until ctx ends, if a volume
// server may only be away for a moment.
func (l *leasing) grant(ctx context.Context, lease leases.Lease, wanted func() bool) ([]*godwitv1.VolumeServer, error) {
	for {
		servers, err := l.book.Grant(ctx, lease)
		if err == nil || !passesSoon(err) || !wanted() {
			return servers, err
		}
		pause := time.NewTimer(grantAgainEvery)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
		if ctx.Err() != nil || !wanted() {
			return nil, err
		}
	}
}

// grantAndSend sends a command when its lease is granted. A source that has to wait
// is told again. A target that may run has had its lease before: it is granted again
// since a grant for an earlier migration may have come late, and taken its place.
func (l *leasing) grantAndSend(host fleet.HostName, command *godwitv1.Command, lease leases.Lease) {
	ctx, cancel := context.WithTimeout(context.Background(), grantTargetWithin)
	defer cancel()
	target := command.GetPrepareTarget()
	servers, err := l.grant(ctx, lease, func() bool { return target != nil && l.wanted(command) })
	switch {
	case err != nil && target != nil:
		l.failed(command, err)
		return
	case err != nil && command.GetRunTarget() == nil:
		l.log(command, err)
		return
	case target != nil:
		target.Instance.VolumeServers = servers
	case command.GetResumeSource() != nil:
		resume := command.GetResumeSource()
		resume.VolumeServers, resume.VolumeKey = servers, l.book.Key(lease.UID, lease.Epoch, lease.Migration)
	}
	if err := l.hub.Send(host, command); err != nil {
		l.log(command, err) // sent again when the host connects
	}
}

func (s *Server) targetWanted(command *godwitv1.Command) bool {
	entry, err := s.tables.migrations.Get(context.Background(), command.GetSubject())
	return err == nil && entry.Value.State == migration.Preparing
}

var errOvertaken = errors.New("it was overtaken")

// targetUnleased ends a migration whose target is not given the volumes.
func (s *Server) targetUnleased(command *godwitv1.Command, cause error) {
	id := fleet.MigrationID(command.GetSubject())
	event := migration.Event{Kind: migration.TargetFailed, From: "server", Detail: cause.Error()}
	_, _, err := s.migrations.AdvanceIf(context.Background(), id, event, func(entry store.Entry[migration.Migration]) error {
		if entry.Value.State != migration.Preparing {
			return errOvertaken
		}
		return nil
	})
	if err != nil && !errors.Is(err, errOvertaken) {
		s.log.Error("a migration was not ended whose target is not given the volumes", "migration", id, "error", err)
	}
}
