package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
)

const (
	spentFile = "epochs.json"
	// spentMax bounds how many VMs are remembered. A command that is older than
	// the last so many VMs that have left the host, or were not started there, does
	// not come again.
	spentMax = 10000
	// causeMax bounds what is remembered of a cause, in bytes.
	causeMax = 200
)

// spent are the epochs at which VMs have run here and left, or could not be
// started. A command to start an instance of such an epoch is an old one: the VM has
// run on elsewhere since, was stopped, or may be started elsewhere. What a target
// was prepared for, and never ran, may come again.
type spent struct {
	path string

	mu     sync.Mutex
	epochs []spentEpoch // the newest last
}

type spentEpoch struct {
	UID   fleet.InstanceUID `json:"uid"`
	Epoch fleet.Epoch       `json:"epoch"`
	Cause string            `json:"cause,omitempty"` // why it did not start
}

func loadSpent(dir string) (*spent, error) {
	s := &spent{path: filepath.Join(dir, spentFile)}
	text, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &s.epochs)
	}
	if err != nil {
		return nil, &fleet.Error{
			Code: fleet.Invalid, Op: "run agent", Subject: s.path, Cause: "it cannot be read", Err: err,
			Hint: "it keeps old commands from being carried out; if it is lost, remove it",
		}
	}
	return s, nil
}

// note remembers that a VM has run here at an epoch or, for a cause, did not start.
// It must be on the disk before what else is known of that instance is removed, and
// before anyone is told.
func (s *spent) note(uid fleet.InstanceUID, epoch fleet.Epoch, cause string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch <= s.of(uid).Epoch {
		return nil
	}
	next := slices.DeleteFunc(slices.Clone(s.epochs), func(one spentEpoch) bool { return one.UID == uid })
	next = append(next, spentEpoch{uid, epoch, strings.ToValidUTF8(cause[:min(len(cause), causeMax)], "")})
	next = next[max(0, len(next)-spentMax):]
	text, err := json.Marshal(next)
	if err == nil {
		err = durable.WriteFile(s.path, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("remember the epoch of an instance: %w", err)
	}
	s.epochs = next
	return nil
}

// of gives the newest of a VM, with mu held; zero if there is none.
func (s *spent) of(uid fleet.InstanceUID) spentEpoch {
	for _, one := range s.epochs {
		if one.UID == uid {
			return one
		}
	}
	return spentEpoch{}
}

// check refuses an epoch at which the VM could not be started here, for the cause
// that it had.
func (s *spent) check(uid fleet.InstanceUID, epoch fleet.Epoch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := s.of(uid); last.Epoch == epoch && last.Cause != "" {
		return errors.New(last.Cause)
	}
	return nil
}

// checkNew refuses an instance that a VM has had here before, or that is older than
// one that it has.
func (a *Agent) checkNew(instance *godwitv1.Instance) error {
	uid, epoch := fleet.InstanceUID(instance.GetUid()), fleet.Epoch(instance.GetEpoch())
	if err := a.spent.check(uid, epoch); err != nil {
		return err
	}
	a.spent.mu.Lock()
	newest := a.spent.of(uid).Epoch
	a.spent.mu.Unlock()
	for _, m := range a.all() {
		if m.key.epoch > epoch && m.mayBeOf(instance.GetVm(), instance.GetUid()) {
			newest = max(newest, m.key.epoch)
		}
	}
	if epoch > newest {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Conflict, Op: "start", Subject: "vm " + instance.GetVm(),
		Cause: fmt.Sprintf("the command is of epoch %d, and %s has had it at epoch %d", epoch, a.config.Name, newest),
		Hint:  "it is an old one; see that no server runs on an old copy of the store",
	}
}

// startsNever remembers a start that was refused or has failed: should the command
// come again, the VM may have been started elsewhere since.
func (a *Agent) startsNever(instance *godwitv1.Instance, cause error) {
	err := a.spent.note(fleet.InstanceUID(instance.GetUid()), fleet.Epoch(instance.GetEpoch()), cause.Error())
	if err != nil {
		a.log.Error("a start that has failed would be carried out if it came again", "vm", instance.GetVm(), "epoch", instance.GetEpoch(), "error", err)
	}
}

// mayBeOf tells whether the machine is, or may be, of a VM.
func (m *machine) mayBeOf(vm, uid string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.uid) == uid || m.uid == "" && string(m.key.vm) == vm
}
