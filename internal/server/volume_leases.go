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
	// failed hears why a target can't be prepared.
	failed func(*godwitv1.Command, error)
	log    func(command *godwitv1.Command, err error)

	mu    sync.Mutex
	under map[string]bool // commands whose leases are being granted
}

func (s *Server) newLeasing() *leasing {
	return &leasing{
		hub: s.hub, book: s.leases, vm: s.mirror.VM, failed: s.targetUnleased, under: map[string]bool{},
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
	}
	return lease, false
}

// grant gives a lease; again, until ctx ends, if a volume server may only be away
// for a moment.
func (l *leasing) grant(ctx context.Context, lease leases.Lease, again bool) ([]*godwitv1.VolumeServer, error) {
	for {
		servers, err := l.book.Grant(ctx, lease)
		if err == nil || !again || !passesSoon(err) {
			return servers, err
		}
		pause := time.NewTimer(grantAgainEvery)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
		if ctx.Err() != nil {
			return nil, err
		}
	}
}

// grantAndSend sends a command when its lease is granted. A source that has to wait
// is told again.
func (l *leasing) grantAndSend(host fleet.HostName, command *godwitv1.Command, lease leases.Lease) {
	ctx, cancel := context.WithTimeout(context.Background(), grantTargetWithin)
	defer cancel()
	target := command.GetPrepareTarget()
	servers, err := l.grant(ctx, lease, target != nil)
	switch {
	case err != nil && target != nil:
		l.failed(command, err)
		return
	case err != nil:
		l.log(command, err)
		return
	case target != nil:
		target.Instance.VolumeServers = servers
	default:
		resume := command.GetResumeSource()
		resume.VolumeServers, resume.VolumeKey = servers, l.book.Key(lease.UID, lease.Epoch, lease.Migration)
	}
	if err := l.hub.Send(host, command); err != nil {
		l.log(command, err) // sent again when the host connects
	}
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
