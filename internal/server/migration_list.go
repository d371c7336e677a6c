package server

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// listBytes bounds the migrations of one page: with their stories they would
// else be more than a client takes in one message.
const listBytes = 4 * fleet.MiB

func (s *migrationService) List(ctx context.Context, request *godwitv1.ListMigrationsRequest) (*godwitv1.ListMigrationsResponse, error) {
	wanted := wantedOf(request)
	read := s.newestFirst
	if request.GetOldestFirst() {
		read = s.oldestFirst
	}
	entries, token, err := read(ctx, request.GetPage(), wanted)
	if err != nil {
		return nil, err
	}
	response := &godwitv1.ListMigrationsResponse{NextToken: token}
	var size fleet.Bytes
	for i, entry := range entries {
		message := migrationMessage(entry)
		if size += fleet.Bytes(proto.Size(message)); size > listBytes && i > 0 {
			response.NextToken = entries[i-1].Name
			break
		}
		response.Migrations = append(response.Migrations, message)
	}
	return response, nil
}

// wanted is what a list asks for; what is not set asks for all.
type wanted struct {
	vm    fleet.VMName
	state migration.State
	since time.Time // only those that ended then or later, or have not
}

func wantedOf(request *godwitv1.ListMigrationsRequest) wanted {
	return wanted{vm: fleet.VMName(request.GetVm()), state: migration.State(request.GetState()), since: wire.TimeOf(request.GetSince())}
}

func (w wanted) has(vm fleet.VMName, state migration.State, ended time.Time) bool {
	return (w.vm == "" || w.vm == vm) && (w.state == "" || w.state == state) && (ended.IsZero() || !ended.Before(w.since))
}

func (w wanted) record(m migration.Migration) bool { return w.has(m.VM, m.State, m.Ended) }

func (s *migrationService) newestFirst(ctx context.Context, page *godwitv1.PageRequest, w wanted) ([]store.Entry[migration.Migration], string, error) {
	return readPage(ctx, s.tables.migrations, page, w.record)
}

// oldestFirst goes by the mirror, since the store lists by name only upwards,
// and ids are made so that this is the newest first.
func (s *migrationService) oldestFirst(ctx context.Context, request *godwitv1.PageRequest, w wanted) (entries []store.Entry[migration.Migration], token string, err error) {
	page := pageOf(request)
	for _, id := range s.mirror.oldestFirst(fleet.MigrationID(page.After), w) {
		if len(entries) == page.Limit {
			return entries, entries[len(entries)-1].Name, nil
		}
		entry, err := s.tables.migrations.Get(ctx, string(id))
		if fleet.CodeOf(err) == fleet.NotFound {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		if w.record(entry.Value) {
			entries = append(entries, entry)
		}
	}
	return entries, "", nil
}

// oldestFirst gives the ids of the wanted migrations that come after one; ""
// is before all.
func (m *mirror) oldestFirst(after fleet.MigrationID, w wanted) (ids []fleet.MigrationID) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for id, move := range m.migrations {
		if (after == "" || id < after) && w.has(move.vm, move.state, move.ended) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	slices.Reverse(ids)
	return ids
}
