package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// Each record is appended to the export file when it is final, and then marked as
// exported in the store: at least once, and never deleted before. The step that
// closes it later, or leads to another state, takes the mark away, and it is
// exported again. If the server dies between the two, the next one that leads
// appends it again, to a file of its own; the id tells.

func (s *Server) exports() bool { return s.config.Export != "" }

// exportEnded appends the records that are final and were not exported so.
func (s *Server) exportEnded(ctx context.Context) error {
	if !s.exports() {
		return nil
	}
	for _, id := range s.mirror.unexported() {
		if err := s.exportOne(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) exportOne(ctx context.Context, id fleet.MigrationID) error {
	migrations := s.tables.migrations
	entry, err := migrations.Get(ctx, string(id))
	if fleet.CodeOf(err) == fleet.NotFound {
		return nil
	}
	if err != nil || !entry.Value.State.Final() || !entry.Value.Exported.IsZero() {
		return err // the mirror was behind
	}
	if err := s.appendRecord(entry); err != nil {
		return err
	}
	entry.Value.Exported = time.Now()
	_, err = s.tables.store.Commit(ctx, store.If(migrations.At(entry.Name, entry.Version)), migrations.Put(entry.Name, entry.Value))
	if fleet.CodeOf(err) == fleet.Conflict {
		return nil // another server was faster, or a host has answered: then it comes again
	}
	return err
}

func (s *Server) appendRecord(entry store.Entry[migration.Migration]) error {
	line, err := wire.CompactJSON(migrationMessage(entry))
	if err != nil {
		return err
	}
	return appendLine(s.config.Export, line)
}

// unexported gives the migrations that are final and were not exported so, the
// oldest first.
func (m *mirror) unexported() (ids []fleet.MigrationID) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for id, move := range m.migrations {
		if move.unexported() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	slices.Reverse(ids)
	return ids
}

// appendLine adds a line to a file and returns when it is on the disk. It opens
// the file each time, so that it can be renamed at any time, and makes it if it
// is missing. A line that an earlier server left unfinished is ended first.
func appendLine(path string, line []byte) error {
	file, err := openAppend(path)
	if err != nil {
		return err
	}
	text := append(slices.Clip(line), '\n')
	torn, err := endsTorn(file)
	if torn {
		text = append([]byte{'\n'}, text...)
	}
	if err == nil {
		_, err = file.Write(text)
	}
	if err == nil {
		err = file.Sync()
	}
	return exportFailed(path, errors.Join(err, file.Close()))
}

// exportMode: a record tells of the inside of a fleet.
const exportMode = 0o600

// openAppend opens the file, and makes sure that a new one stays.
func openAppend(path string) (*os.File, error) {
	_, err := os.Stat(path)
	isNew := errors.Is(err, fs.ErrNotExist)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, exportMode)
	if err != nil {
		return nil, exportFailed(path, err)
	}
	if !isNew {
		return file, nil
	}
	if err := durable.SyncFolder(filepath.Dir(path)); err != nil {
		return nil, exportFailed(path, errors.Join(err, file.Close()))
	}
	return file, nil
}

// endsTorn reports whether the last line of the file has no end.
func endsTorn(file *os.File) (bool, error) {
	info, err := file.Stat()
	if err != nil || info.Size() == 0 {
		return false, err
	}
	last := make([]byte, 1)
	_, err = file.ReadAt(last, info.Size()-1)
	return last[0] != '\n', err
}

// exportFailed explains what went wrong with the file, if anything did.
func exportFailed(path string, err error) error {
	if err == nil {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Failed, Op: "export migrations", Subject: path, Cause: "the file can't be written", Err: err,
		Hint: "see that its folder exists, may be written by the server and has room",
	}
}

// checkExport finds out before the server begins whether it can export.
func (s *Server) checkExport() error {
	if !s.exports() {
		return nil
	}
	file, err := openAppend(s.config.Export)
	if err != nil {
		return err
	}
	return file.Close()
}
