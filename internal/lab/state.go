package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
)

// stateDir holds a folder for every lab of this machine. It lies in a tmpfs,
// so nothing of it outlives the namespaces.
const stateDir = "/run/godwit-lab"

// lockEvery is how often a lock that another process holds is tried again:
// the kernel can wait for it, but not for the end of a context as well.
const lockEvery = 10 * time.Millisecond

// Info is what is recorded of a lab, for whoever comes after its owner.
type Info struct {
	Name       string    `json:"name"`
	Owner      int       `json:"owner"` // pid, for people; the lock tells whether it lives
	Created    time.Time `json:"created"`
	Kept       bool      `json:"kept"` // left on purpose
	Namespaces []string  `json:"namespaces"`
	Dir        string    `json:"dir"` // working folder
}

func folder(name string) string { return filepath.Join(stateDir, name) }

// save writes the record, replacing the one before in one step.
func (i Info) save() error {
	content, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(folder(i.Name), "state.json")
	return durable.WriteFile(path, append(content, '\n'), 0o600)
}

func load(name string) (Info, error) {
	content, err := os.ReadFile(filepath.Join(folder(name), "state.json"))
	if errors.Is(err, os.ErrNotExist) {
		return Info{Name: name}, nil // its owner died before it made anything
	}
	if err != nil {
		return Info{}, err
	}
	var info Info
	if err := json.Unmarshal(content, &info); err != nil {
		return Info{}, fmt.Errorf("lab %s: state.json: %w", name, err)
	}
	if err := info.plausible(name); err != nil {
		return Info{}, err
	}
	return info, nil
}

// plausible refuses a record that would have something removed that cannot be
// a lab's.
func (i Info) plausible(name string) error {
	ok := i.Name == name && (i.Dir == "" || strings.HasPrefix(filepath.Base(i.Dir), "godwit-lab-"))
	for _, namespace := range i.Namespaces {
		ok = ok && strings.HasPrefix(namespace, "gw-"+name+"-") && !strings.Contains(namespace, "/")
	}
	if !ok {
		return fmt.Errorf("lab %s: state.json is not of this lab", name)
	}
	return nil
}

// remove removes all that the record names, and the record last. Held are
// namespaces of the lab that the caller has open, whatever their names are now.
func (i Info) remove(held ...*os.File) error {
	inside, err := grasp(i.Namespaces)
	if err == nil {
		defer inside.letGo()
		for _, file := range held {
			err = errors.Join(err, inside.add(file))
		}
	}
	if err == nil {
		err = inside.killInside()
	}
	if err != nil {
		return fmt.Errorf("lab %s: %w", i.Name, err)
	}
	var failed []error
	for _, namespace := range i.Namespaces {
		failed = append(failed, deleteNamespace(namespace))
	}
	// Again, for whoever has come in by a name meanwhile.
	failed = append(failed, inside.killInside())
	if i.Dir != "" {
		failed = append(failed, os.RemoveAll(i.Dir))
	}
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("lab %s: %w", i.Name, err)
	}
	return os.RemoveAll(folder(i.Name))
}

// lock is an exclusive flock, held until release or the end of the process.
type lock struct{ file *os.File }

var errHeld = errors.New("lock is held")

// tryLock gives errHeld if another process, or another lock of this one,
// holds it.
func tryLock(path string) (*lock, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return &lock{file}, nil
	}
	file.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errHeld
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

func (l *lock) release() { l.file.Close() }

// lockAll takes the lock under which labs are begun and swept, so that no
// half-begun lab is taken for one whose owner has died.
func lockAll(ctx context.Context) (*lock, error) {
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return nil, err
	}
	for {
		l, err := tryLock(stateDir + "/.lock")
		if !errors.Is(err, errHeld) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another lab to be swept: %w", ctx.Err())
		case <-time.After(lockEvery):
		}
	}
}

// List gives the labs of this machine, by name.
func List() ([]Info, error) {
	names, err := names()
	if err != nil {
		return nil, err
	}
	var infos []Info
	for _, name := range names {
		info, err := load(name)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

func names() ([]string, error) {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names, err
}

// Sweep removes every lab whose owner has died, and gives their names. Labs
// that were kept stay.
func Sweep(ctx context.Context) (removed []string, err error) {
	all, err := lockAll(ctx)
	if err != nil {
		return nil, err
	}
	defer all.release()
	return sweep()
}

// sweep does it, for who holds the lock.
func sweep() (removed []string, err error) {
	names, err := names()
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, name := range names {
		gone, err := removeDead(name, false)
		failed = append(failed, err)
		if gone {
			removed = append(removed, name)
		}
	}
	return removed, errors.Join(failed...)
}

// removeDead removes a lab if nobody owns it.
func removeDead(name string, evenKept bool) (gone bool, err error) {
	owner, err := tryLock(filepath.Join(folder(name), "lock"))
	if errors.Is(err, errHeld) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer owner.release()
	info, err := load(name)
	if err != nil {
		return false, err
	}
	if info.Kept && !evenKept {
		return false, nil
	}
	return true, info.remove()
}

// Remove removes one lab that was kept or has lost its owner.
func Remove(ctx context.Context, name string) error {
	all, err := lockAll(ctx)
	if err != nil {
		return err
	}
	defer all.release()
	known, err := names()
	if err != nil {
		return err
	}
	fault := fleet.Error{Op: "remove lab", Subject: name}
	if !slices.Contains(known, name) {
		fault.Code, fault.Cause = fleet.NotFound, "there is no such lab"
		return &fault
	}
	gone, err := removeDead(name, true)
	if err == nil && !gone {
		fault.Code, fault.Cause = fleet.Conflict, "its owner is running"
		fault.Hint = "end the command that made the lab; it removes the lab itself"
		return &fault
	}
	return err
}
