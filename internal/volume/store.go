package volume

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
)

const (
	lockName   = "lock"
	volumesDir = "volumes"
	// unfinished begins the names of folders that are being made or removed.
	// No volume's name does.
	unfinished = ".unfinished-"
)

// Store is a folder of volumes, all of them open and locked. It is safe for
// concurrent use.
type Store struct {
	dir  string
	lock *os.File

	// making orders what makes, grows and removes volumes; mu guards the maps.
	making  sync.Mutex
	closed  bool // by making
	mu      sync.Mutex
	volumes map[fleet.VolumeName]*volume
	broken  map[fleet.VolumeName]error
}

// Open opens the folder and every volume in it, after making it if there is
// none. It is refused with Conflict while another process uses the folder or
// one of the volumes. A volume that cannot be opened otherwise is not served;
// List says why.
func Open(dir string) (_ *Store, err error) {
	s := &Store{dir: dir, volumes: make(map[fleet.VolumeName]*volume), broken: make(map[fleet.VolumeName]error)}
	if err := durable.MakeFolder(filepath.Join(dir, volumesDir), 0o700); err != nil {
		return nil, err
	}
	if s.lock, err = lockFolder(dir); err != nil {
		return nil, err
	}
	if err := s.openAll(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func lockFolder(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return file, nil
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = &fleet.Error{
			Code: fleet.Conflict, Op: "use folder", Subject: dir, Cause: "another volume server uses it",
			Hint: "end that one, or give this one a folder of its own: --dir",
		}
	}
	return nil, errors.Join(err, file.Close())
}

func (s *Store) openAll() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, volumesDir))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		dir := filepath.Join(s.dir, volumesDir, entry.Name())
		if strings.HasPrefix(entry.Name(), unfinished) {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			continue
		}
		name := fleet.VolumeName(entry.Name())
		v, err := openVolume(dir)
		switch {
		case fleet.CodeOf(err) == fleet.Conflict:
			return err
		case err != nil:
			s.broken[name] = err
		default:
			s.volumes[name] = v
		}
	}
	return nil
}

// Close ends the serving of all volumes: connections are cut, running writes
// are over when it returns, and everything is flushed.
func (s *Store) Close() error {
	s.making.Lock()
	defer s.making.Unlock()
	s.closed = true
	var errs []error
	for _, v := range s.all() {
		errs = append(errs, v.shut(true), v.data.flush(), v.leases.file.Close(), v.data.close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.volumes)
	return errors.Join(append(errs, s.lock.Close())...)
}

func (s *Store) all() []*volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.volumes), func(a, b *volume) int { return cmp.Compare(a.name, b.name) })
}

func (s *Store) find(name fleet.VolumeName) (*volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.volumes[name]; v != nil {
		return v, nil
	}
	missing := &fleet.Error{
		Code: fleet.NotFound, Op: "find", Subject: "volume " + string(name), Cause: "there is none of that name here",
		Hint: "godwit volume list names those that are",
	}
	if problem := s.broken[name]; problem != nil {
		missing.Code, missing.Cause, missing.Err = fleet.Failed, "it is not served", problem
		missing.Hint = fleet.HintOf(problem)
	}
	return nil, missing
}

// Create makes a volume: of a file that is all zeroes, of the given size; or of
// a block device, whose size it has.
func (s *Store) Create(name fleet.VolumeName, size fleet.Bytes, device string) (Info, error) {
	s.making.Lock()
	defer s.making.Unlock()
	refuse := func(code fleet.Code, cause string, err error) (Info, error) {
		return Info{}, &fleet.Error{Code: code, Op: "create", Subject: "volume " + string(name), Cause: cause, Err: err}
	}
	if s.closed {
		return refuse(fleet.Unavailable, "the volume server ends", nil)
	}
	if err := fleet.CheckName(string(name)); err != nil {
		return refuse(fleet.Invalid, "", err)
	}
	c := config{Size: size, Device: device}
	if err := c.check(); err != nil {
		return refuse(fleet.Invalid, "", err)
	}
	if _, err := s.find(name); fleet.CodeOf(err) != fleet.NotFound {
		return refuse(fleet.Exists, "there is one of that name already", nil)
	}
	dir := filepath.Join(s.dir, volumesDir, string(name))
	if err := createVolume(dir, c); err != nil {
		return refuse(codeOf(err), "", err)
	}
	v, err := openVolume(dir)
	if err != nil {
		return refuse(codeOf(err), "", errors.Join(err, deleteVolume(dir)))
	}
	s.mu.Lock()
	s.volumes[name] = v
	s.mu.Unlock()
	return v.info()
}

// codeOf classes what the system refused.
func codeOf(err error) fleet.Code {
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return fleet.Exhausted
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EFBIG):
		return fleet.Invalid
	}
	if e, ok := errors.AsType[*fleet.Error](err); ok {
		return e.Code
	}
	return fleet.Failed
}

// Grow makes a volume larger, also while it is used; never smaller.
func (s *Store) Grow(name fleet.VolumeName, size fleet.Bytes) (Info, error) {
	if size == 0 || size > MaxSize {
		return Info{}, &fleet.Error{
			Code: fleet.Invalid, Op: "grow", Subject: "volume " + string(name), Cause: fmt.Sprintf("the size is not within 1B..%v", MaxSize),
		}
	}
	s.making.Lock()
	defer s.making.Unlock()
	v, err := s.find(name)
	if err != nil {
		return Info{}, err
	}
	if err := v.grow(size); err != nil {
		return Info{}, err
	}
	return v.info()
}

// Delete removes a volume and its bytes; of a device only that it was one.
// Refused with Conflict while it has a lease or a connection.
func (s *Store) Delete(name fleet.VolumeName) error {
	s.making.Lock()
	defer s.making.Unlock()
	v, err := s.find(name)
	if err != nil {
		return err
	}
	if err := v.shut(false); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.volumes, name)
	s.mu.Unlock()
	err = errors.Join(deleteVolume(v.dir), v.leases.file.Close(), v.data.close())
	if err != nil {
		return &fleet.Error{Code: fleet.Failed, Op: "delete", Subject: "volume " + string(name), Err: err}
	}
	return nil
}

// List gives all volumes in the order of their names, also those that cannot
// be served.
func (s *Store) List() []Info {
	var infos []Info
	for _, v := range s.all() {
		if info, err := v.info(); err == nil {
			infos = append(infos, info)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, problem := range s.broken {
		infos = append(infos, Info{Name: name, Problem: problem.Error()})
	}
	slices.SortFunc(infos, func(a, b Info) int { return cmp.Compare(a.Name, b.Name) })
	return infos
}

// Grant gives a host the standby lease of an epoch: see Lease.Grant. It is
// durable when Grant returns.
func (s *Store) Grant(name fleet.VolumeName, next Standby) (Lease, error) {
	v, err := s.find(name)
	if err != nil {
		return Lease{}, err
	}
	return v.change(func(l Lease) (Lease, error) { return l.Grant(next) })
}

// Activate makes the standby leases of an epoch of all named volumes active, at
// the same time: see Lease.Activate. When it returns without an error, no write
// of an older epoch is running or will ever be done, their connections are
// closed, and all that is durable. After an error some may be active, unless it is
// that there is no such volume; it can be repeated. With no volume it does nothing.
func (s *Store) Activate(names []fleet.VolumeName, epoch fleet.Epoch, host fleet.HostName, key []byte) error {
	var volumes []*volume
	for _, name := range names {
		v, err := s.find(name)
		if err != nil {
			return err
		}
		volumes = append(volumes, v)
	}
	var group errgroup.Group
	for _, v := range volumes {
		group.Go(func() error {
			_, err := v.change(func(l Lease) (Lease, error) { return l.Activate(epoch, host, key) })
			return err
		})
	}
	return group.Wait()
}

// Release ends the lease of an epoch: see Lease.Release.
func (s *Store) Release(name fleet.VolumeName, epoch fleet.Epoch, only KeyHash) (Lease, error) {
	v, err := s.find(name)
	if err != nil {
		return Lease{}, err
	}
	return v.change(func(l Lease) (Lease, error) { return l.Release(epoch, only), nil })
}
