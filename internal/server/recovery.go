package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// A store that was restored from a backup says what was true once. VMs have
// moved since, and an epoch that it would give next may have been given. So
// while the record restoreKey exists no host is told anything, nothing is
// changed, and sessions are refused once their Hello has said what runs there.
// It is made by Restore, or as soon as an agent knows of a newer store than the
// server has; AcceptRestore ends it.

// restoreRecord says that the store was restored.
type restoreRecord struct {
	Why string    `json:"why"`
	At  time.Time `json:"at"`
}

const (
	restoreKey = "pending"
	// generationCounter counts how often a restored store was accepted.
	generationCounter = "generation"
)

// recovery is what the leader has heard of hosts since the store was restored.
type recovery struct {
	mu    sync.Mutex
	heard map[fleet.HostName]*godwitv1.Hello
}

func newRecovery() *recovery { return &recovery{heard: map[fleet.HostName]*godwitv1.Hello{}} }

func (r *recovery) hear(host fleet.HostName, hello *godwitv1.Hello) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard[host] = hello
}

// forget begins anew: what was heard in an earlier term may be long ago.
func (r *recovery) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard = map[fleet.HostName]*godwitv1.Hello{}
}

func (r *recovery) of(host fleet.HostName) *godwitv1.Hello {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.heard[host]
}

// Restore makes the folder of an embedded store from a backup, for a server
// that is then started on it.
func Restore(ctx context.Context, backup string, config store.Config) error {
	if err := store.Restore(backup, config); err != nil {
		return err
	}
	restored, err := store.Open(ctx, config)
	if err != nil {
		return err
	}
	defer restored.Close()
	return newTables(restored).noteRestore(ctx, "godwit server restore has put a backup in its place")
}

// noteRestore stops everything, for every server. The first reason stays.
func (t tables) noteRestore(ctx context.Context, why string) error {
	_, err := t.store.Commit(ctx, store.If(t.restores.Absent(restoreKey)), t.restores.Put(restoreKey, restoreRecord{Why: why, At: time.Now()}))
	if fleet.CodeOf(err) == fleet.Conflict {
		return nil
	}
	return err
}

// loadRecovery reads at the begin of a term, and shows the mirror, whether the
// store was restored and how often it was accepted.
func (s *Server) loadRecovery(ctx context.Context) (restored bool, err error) {
	generation, err := s.tables.counters.Get(ctx, generationCounter)
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return false, err
	}
	entry, err := s.tables.restores.Get(ctx, restoreKey)
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return false, err
	}
	s.mirror.noteRecovery(generation.Value, entry.Value.Why)
	return err == nil, nil
}

// mark is the present point in the store's history, as agents keep it.
func (s *Server) mark(ctx context.Context) (*godwitv1.StoreMark, error) {
	now, err := s.config.Store.Mark(ctx)
	generation, _ := s.mirror.recovery()
	return &godwitv1.StoreMark{Cluster: now.Cluster, Generation: generation, Revision: now.Revision}, err
}

// isBehind tells whether a store with that mark lacks what an agent was told of.
func isBehind(now, known *godwitv1.StoreMark) bool {
	switch {
	case known == nil || now.GetGeneration() > known.GetGeneration():
		return false
	case now.GetGeneration() < known.GetGeneration():
		return true
	}
	return now.GetCluster() != known.GetCluster() || now.GetRevision() < known.GetRevision()
}

// checkStore refuses a session when the store was restored, or shows by what
// the host knows to have been. What the host has is remembered.
func (s *Server) checkStore(ctx context.Context, own *term, told fleet.Host, hello *godwitv1.Hello) (*godwitv1.StoreMark, error) {
	host := told.Name
	now, err := s.mark(ctx)
	if err != nil {
		return nil, err
	}
	_, why := s.mirror.recovery()
	if why == "" && isBehind(now, hello.GetStore()) {
		why = fmt.Sprintf("host %s was told of %s, and the store is at %s", host, spellMark(hello.GetStore()), spellMark(now))
		s.log.Error("the store is an old copy: nothing is done any more until godwit server accept-restore", "why", why)
		if err := s.tables.noteRestore(ctx, why); err != nil {
			return nil, err
		}
		s.mirror.noteRecovery(now.GetGeneration(), why)
		own.end() // what this server did as if all were well
	}
	if why == "" {
		return now, nil
	}
	known, err := s.tables.hosts.Get(ctx, string(host))
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return nil, err
	}
	if err := sameMachine(known.Value, told); err != nil {
		return nil, err
	}
	s.recovery.hear(host, hello)
	return nil, storeRestored("open session", why)
}

func spellMark(m *godwitv1.StoreMark) string {
	return fmt.Sprintf("revision %d of cluster %x, generation %d", m.GetRevision(), m.GetCluster(), m.GetGeneration())
}

func storeRestored(op, why string) error {
	return &fleet.Error{
		Code: fleet.Conflict, Op: op, Subject: "the fleet",
		Cause: "the store was restored from a backup, and VMs may have moved or changed since: " + why,
		Hint:  "VMs run on; see that the agents of all hosts run, then: godwit server accept-restore",
	}
}

// safeOnRestored is what may be called although the store was restored: it
// changes nothing, or it is what helps.
var safeOnRestored = []string{
	godwitv1connect.VMServiceGetProcedure, godwitv1connect.VMServiceListProcedure, godwitv1connect.VMServiceWatchProcedure,
	godwitv1connect.VMServiceConsoleProcedure,
	godwitv1connect.NetworkServiceGetProcedure, godwitv1connect.NetworkServiceListProcedure,
	godwitv1connect.HostServiceGetProcedure, godwitv1connect.HostServiceListProcedure, godwitv1connect.HostServiceCreateTokenProcedure,
	godwitv1connect.MigrationServiceGetProcedure, godwitv1connect.MigrationServiceListProcedure,
	godwitv1connect.MigrationServiceWatchProcedure,
	godwitv1connect.EnrollServiceEnrollProcedure, godwitv1connect.EnrollServiceRenewProcedure,
	godwitv1connect.ServerServiceStatusProcedure, godwitv1connect.ServerServiceBackupProcedure,
	godwitv1connect.ServerServiceAcceptRestoreProcedure,
	godwitv1connect.AgentServiceSessionProcedure, // see checkStore
}

// refuseRestored refuses all other calls while the store counts as restored.
func (m *mirror) refuseRestored(_ context.Context, procedure string) error {
	_, why := m.recovery()
	if why == "" || slices.Contains(safeOnRestored, procedure) {
		return nil
	}
	err := storeRestored("call", why).(*fleet.Error)
	err.Subject = strings.TrimPrefix(procedure, "/")
	if procedure == godwitv1connect.AgentServiceCommitProcedure {
		err.Code = fleet.Unavailable // no answer: a target that is refused gives up
	}
	return err
}
