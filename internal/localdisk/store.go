package localdisk

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
)

// State is what a copy is to its VM. The values are stored, so they are never
// renamed.
type State string

// The states.
const (
	Filling State = "filling"
	Good    State = "good"
	Old     State = "old"
)

// Copy is the mark of a copy.
type Copy struct {
	VM    fleet.VMName      `json:"vm"`
	UID   fleet.InstanceUID `json:"uid"`
	Epoch fleet.Epoch       `json:"epoch"`
	State State             `json:"state"`
	// RemoveAt: of an old one; zero is never.
	RemoveAt time.Time `json:"removeAt,omitzero"`

	Dir string `json:"-"`
}

// Path gives the image of a disk.
func (c Copy) Path(disk fleet.Disk) string {
	return filepath.Join(c.Dir, disk.Name+"."+disk.Format)
}

const markFile = "copy.json"

// Store is the folder of all copies of a host.
type Store struct{ dir string }

// Open gives the store of a folder, which it makes.
func Open(dir string) (*Store, error) {
	if err := durable.MakeFolder(dir, 0o700); err != nil {
		return nil, &fleet.Error{Code: fleet.Invalid, Op: "keep local disks", Subject: dir, Err: err}
	}
	return &Store{dir}, nil
}

// ErrNone: there is no copy in a folder, or not any more.
var ErrNone = errors.New("there are no local disks")

// uids become folders.
var uids = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

func checkUID(uid fleet.InstanceUID) error {
	if !uids.MatchString(string(uid)) {
		return &fleet.Error{Code: fleet.Invalid, Op: "find local disks", Subject: "vm", Cause: fmt.Sprintf("%q is no uid", string(uid[:min(len(uid), 64)]))}
	}
	return nil
}

// Of gives the copies of a VM, those with the oldest epochs first.
func (s *Store) Of(uid fleet.InstanceUID) (copies []Copy, err error) {
	if err := checkUID(uid); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, string(uid))
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, entry := range entries {
		one, readErr := read(filepath.Join(dir, entry.Name()))
		if errors.Is(readErr, ErrNone) { // it was being made, or removed
			continue
		}
		if err = errors.Join(err, readErr); readErr == nil {
			copies = insert(copies, one)
		}
	}
	return copies, err
}

func insert(copies []Copy, one Copy) []Copy {
	at := len(copies)
	for at > 0 && copies[at-1].Epoch > one.Epoch {
		at--
	}
	return append(copies[:at], append([]Copy{one}, copies[at:]...)...)
}

// All gives the copies of all VMs.
func (s *Store) All() (copies []Copy, err error) {
	entries, err := os.ReadDir(s.dir)
	for _, entry := range entries {
		if checkUID(fleet.InstanceUID(entry.Name())) != nil {
			continue
		}
		of, readErr := s.Of(fleet.InstanceUID(entry.Name()))
		copies, err = append(copies, of...), errors.Join(err, readErr)
	}
	return copies, err
}

// In gives the copy of a folder, or ErrNone.
func (s *Store) In(dir string) (Copy, error) { return read(dir) }

func read(dir string) (c Copy, err error) {
	text, err := os.ReadFile(filepath.Join(dir, markFile))
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	c.Dir = dir
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("%w in %s", ErrNone, dir)
	}
	if err != nil {
		err = fmt.Errorf("read the mark of local disks: %w", err)
	}
	return c, err
}

// Mark writes the mark of a copy that is there.
func (s *Store) Mark(c Copy) error {
	text, err := json.Marshal(c)
	if err == nil {
		err = durable.WriteFile(filepath.Join(c.Dir, markFile), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("mark local disks: %w", err)
	}
	return nil
}

// Make makes a copy with all of the disks, by create. What an earlier migration has
// left unfinished of the same epoch is removed before; anything else is a Conflict.
func (s *Store) Make(c Copy, disks []fleet.Disk, create func(path, format string, size fleet.Bytes) error) (Copy, error) {
	if err := checkUID(c.UID); err != nil {
		return c, err
	}
	c.Dir = filepath.Join(s.dir, string(c.UID), strconv.FormatUint(uint64(c.Epoch), 10))
	switch there, err := read(c.Dir); {
	case err == nil && there.State != Filling:
		return Copy{}, &fleet.Error{
			Code: fleet.Conflict, Op: "make local disks", Subject: c.Dir, Cause: fmt.Sprintf("there are %s ones of epoch %d", there.State, there.Epoch),
			Hint: "see that no server runs on an old copy of the store; if nobody needs them, remove the folder",
		}
	case err != nil && !errors.Is(err, ErrNone):
		return Copy{}, err
	}
	if err := s.Remove(c); err != nil {
		return c, err
	}
	if err := s.checkRoom(disks); err != nil {
		return c, err
	}
	if err := durable.MakeFolder(c.Dir, 0o700); err != nil {
		return c, err
	}
	for _, disk := range disks {
		if err := fleet.CheckName(disk.Name); err != nil {
			return c, errors.Join(err, s.Remove(c))
		}
		if err := create(c.Path(disk), disk.Format, disk.Size); err != nil {
			return c, errors.Join(err, s.Remove(c))
		}
	}
	if err := durable.SyncFolder(c.Dir); err != nil {
		return c, errors.Join(err, s.Remove(c))
	}
	return c, s.Mark(c) // last: without it there is no copy
}

// checkRoom demands room for all that the disks may come to hold.
func (s *Store) checkRoom(disks []fleet.Disk) error {
	var need, free fleet.Bytes
	for _, disk := range disks {
		need += disk.Size
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(s.dir, &stat); err != nil {
		return &os.PathError{Op: "statfs", Path: s.dir, Err: err}
	}
	if free = fleet.Bytes(stat.Bavail) * fleet.Bytes(stat.Bsize); free >= need {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Exhausted, Op: "make local disks", Subject: s.dir,
		Cause: fmt.Sprintf("they are of %v, and %v is free: %v is missing", need, free, need-free),
		Hint:  "make room there, or take another host",
	}
}

// Remove removes a copy. Its mark goes first, so that there is never a part of one.
func (s *Store) Remove(c Copy) error {
	err := os.Remove(filepath.Join(c.Dir, markFile))
	if err == nil {
		err = durable.SyncFolder(c.Dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove local disks: %w", err)
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		return fmt.Errorf("remove local disks: %w", err)
	}
	_ = os.Remove(filepath.Dir(c.Dir)) // if there is no other one
	return nil
}
