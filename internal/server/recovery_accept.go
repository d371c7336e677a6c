package server

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// epochLift is added to the newest known epoch of a VM of which no instance goes
// on: a host that is given up may have had a newer one. It is more than any VM can
// have used since a backup that is worth restoring.
const epochLift = 1 << 20

// sighting is an instance of which a host has told.
type sighting struct {
	host     fleet.HostName
	instance *godwitv1.InstanceReport
}

func (s sighting) owner() fleet.Owner {
	return fleet.Owner{Host: s.host, Epoch: fleet.Epoch(s.instance.GetEpoch())}
}

// AcceptRestore brings the records of a restored store in line with what the
// hosts have, one VM after the other, and lets the fleet go on. It can be
// called again when it has failed in the middle.
func (s serverService) AcceptRestore(ctx context.Context, request *godwitv1.AcceptRestoreRequest) (*godwitv1.AcceptRestoreResponse, error) {
	server := s.server
	own, _, _ := server.leader.now()
	if _, why := server.mirror.recovery(); why == "" || own == nil {
		return nil, &fleet.Error{
			Code: fleet.Conflict, Op: "accept restore", Subject: "the fleet", Cause: "the store was not restored, or it was accepted already",
			Hint: "godwit server status tells",
		}
	}
	seen, newest, err := server.sightings(ctx, request.GetLostHosts())
	if err != nil {
		return nil, err
	}
	changes, err := server.settleRestored(ctx, seen)
	if err != nil {
		return nil, err
	}
	if err := server.endRestore(ctx, newest); err != nil {
		return nil, err
	}
	server.log.Info("the restored store was accepted", "changes", len(changes))
	own.end() // the next term begins as any other
	return &godwitv1.AcceptRestoreResponse{Changes: changes}, nil
}

// sightings gives all instances, by VM, and the newest generation of the store
// that a host was told of. Every host must have been heard of that the records
// know, and that is not given up.
func (s *Server) sightings(ctx context.Context, lost []string) (seen map[string][]sighting, newest uint32, err error) {
	hosts, _, err := s.tables.hosts.All(ctx)
	if err != nil {
		return nil, 0, err
	}
	var silent []string
	for _, entry := range hosts {
		if s.recovery.of(fleet.HostName(entry.Name)) == nil && !slices.Contains(lost, entry.Name) {
			silent = append(silent, entry.Name)
		}
	}
	if len(silent) > 0 {
		return nil, 0, &fleet.Error{
			Code: fleet.Conflict, Op: "accept restore", Subject: "the fleet",
			Cause: "it is not known what runs on " + strings.Join(silent, ", "),
			Hint:  "start their agents; of a host on which nothing runs any more say so: --lost " + silent[0],
		}
	}
	s.recovery.mu.Lock()
	defer s.recovery.mu.Unlock()
	seen = map[string][]sighting{}
	for host, hello := range s.recovery.heard {
		newest = max(newest, hello.GetStore().GetGeneration())
		for _, instance := range hello.GetInstances() {
			seen[instance.GetVm()] = append(seen[instance.GetVm()], sighting{host, instance})
		}
	}
	return seen, newest, nil
}

// settleRestored writes every VM as it is, ends the migrations of the backup,
// and counts anew what is reserved.
func (s *Server) settleRestored(ctx context.Context, seen map[string][]sighting) (changes []string, err error) {
	migrations, _, err := s.tables.migrations.All(ctx)
	if err != nil {
		return nil, err
	}
	for _, entry := range migrations {
		if entry.Value.Over() {
			continue
		}
		ended := migration.Abandon(entry.Value, "the store was restored from a backup of the time when it was under way", time.Now())
		if err := s.replace(ctx, s.tables.migrations.At(entry.Name, entry.Version), s.tables.migrations.Put(entry.Name, ended)); err != nil {
			return nil, err
		}
		changes = append(changes, fmt.Sprintf("migration %s of vm %s was under way and counts as ended", entry.Name, ended.VM))
	}
	vms, _, err := s.tables.vms.All(ctx)
	if err != nil {
		return nil, err
	}
	claims := map[fleet.HostName]fleet.Ledger{}
	for _, entry := range vms {
		vm, change := settledVM(entry.Value, seen[entry.Name])
		if err := s.replace(ctx, s.tables.vms.At(entry.Name, entry.Version), s.tables.vms.Put(entry.Name, vm)); err != nil {
			return nil, err
		}
		if change != "" {
			changes = append(changes, change)
		}
		if vm.Owner.Host != "" {
			claims[vm.Owner.Host] = claimed(claims[vm.Owner.Host], vm.Owner.Host, vm)
		}
	}
	return changes, s.recount(ctx, claims)
}

func (s *Server) replace(ctx context.Context, condition store.Condition, op store.Op) error {
	_, err := s.tables.store.Commit(ctx, store.If(condition), op)
	return err
}

// settledVM gives a VM's record as it must be by what hosts have of it, and in
// a sentence what is new.
func settledVM(vm fleet.VM, seen []sighting) (fleet.VM, string) {
	before := vm.Owner
	seen = slices.DeleteFunc(slices.Clone(seen), func(s sighting) bool {
		stale := s.owner().Epoch < before.Epoch && s.instance.GetMigration() == "" // even by the backup
		uid := s.instance.GetUid()                                                 // "" where its agent can't tell
		return stale || uid != "" && uid != string(vm.UID)
	})
	vm.Migration = ""
	owner, whyNone := goesOn(seen)
	if whyNone == "" {
		vm.Owner, vm.Phase, vm.Cause, vm.QEMU = owner.owner(), fleet.VMRunning, "", wire.QEMUOf(owner.instance)
		if vm.Owner == before {
			return vm, ""
		}
		return vm, fmt.Sprintf("vm %s: it is on %s with epoch %d, the backup had epoch %d", vm.Name, vm.Owner.Host, vm.Owner.Epoch, before.Epoch)
	}
	highest := before.Epoch
	for _, one := range seen {
		highest = max(highest, one.owner().Epoch)
	}
	vm.Owner, vm.QEMU = fleet.Owner{Epoch: highest + epochLift}, fleet.InstanceQEMU{}
	if vm.Phase == fleet.VMStopped || vm.Phase == fleet.VMFailed {
		return vm, ""
	}
	vm.Phase, vm.Cause = fleet.VMFailed, "when the restored store was accepted, "+whyNone
	return vm, fmt.Sprintf("vm %s: %s, the backup had it on %s; start it when you like", vm.Name, whyNone, before.Host)
}

// goesOn gives the instance of a VM that is its owner, or says why none is. It is
// the newest that lives; one that is being started runs in a moment, or its host
// says that it does not. One that stands still as the source of a migration is it
// only while the newer ones, and there is one, all wait for their state: any other
// may have run, and have written to the disks.
func goesOn(seen []sighting) (owner sighting, whyNone string) {
	var live []sighting
	for _, one := range seen {
		switch one.instance.GetState() {
		case lifecycle.Starting, lifecycle.Running, lifecycle.Paused:
			live = append(live, one)
		}
	}
	if len(live) == 0 {
		return sighting{}, "no host had an instance of it"
	}
	slices.SortFunc(live, func(a, b sighting) int { return cmp.Compare(b.instance.GetEpoch(), a.instance.GetEpoch()) })
	newest := live[0]
	epoch := newest.instance.GetEpoch()
	if len(live) > 1 && live[1].instance.GetEpoch() == epoch {
		return sighting{}, fmt.Sprintf("%s and %s both had an instance of epoch %d", newest.host, live[1].host, epoch)
	}
	if newest.instance.GetState() != lifecycle.Paused {
		return newest, ""
	}
	newer := slices.DeleteFunc(slices.Clone(seen), func(s sighting) bool { return s.instance.GetEpoch() <= epoch })
	mayHaveRun := func(s sighting) bool { return s.instance.GetState() != lifecycle.Incoming }
	if newest.instance.GetMigration() != "" && len(newer) == 0 || slices.ContainsFunc(newer, mayHaveRun) {
		return sighting{}, fmt.Sprintf("it stood still on %s and may have run elsewhere since", newest.host)
	}
	return newest, ""
}

// recount replaces the ledgers of all hosts.
func (s *Server) recount(ctx context.Context, claims map[fleet.HostName]fleet.Ledger) error {
	ledgers, _, err := s.tables.ledgers.All(ctx)
	if err != nil {
		return err
	}
	versions := map[fleet.HostName]int64{}
	for _, entry := range ledgers {
		host := fleet.HostName(entry.Name)
		versions[host] = entry.Version
		if _, has := claims[host]; !has {
			claims[host] = fleet.Ledger{Host: host}
		}
	}
	for host, ledger := range claims {
		if err := s.replace(ctx, s.tables.ledgers.At(string(host), versions[host]), s.tables.ledgers.Put(string(host), ledger)); err != nil {
			return err
		}
	}
	return nil
}

// endRestore begins a new generation, which is after all that hosts were told
// of.
func (s *Server) endRestore(ctx context.Context, newest uint32) error {
	counters := s.tables.counters
	generation, err := counters.Get(ctx, generationCounter)
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return err
	}
	next := max(generation.Value, newest) + 1
	_, err = s.tables.store.Commit(ctx, store.If(counters.At(generationCounter, generation.Version)),
		counters.Put(generationCounter, next), s.tables.restores.Delete(restoreKey))
	if err == nil {
		s.mirror.noteRecovery(next, "") // so that the next call finds the fleet going on
	}
	return err
}
