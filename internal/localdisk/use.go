package localdisk

import (
	"errors"
	"fmt"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Use gives the copy from which a VM starts at an epoch, and marks it so. from is the
// epoch of which the VM's data are at least, by its record: 0 if it has none yet,
// which is NotFound if the host has none either.
func (s *Store) Use(vm fleet.VMName, uid fleet.InstanceUID, epoch, from fleet.Epoch) (Copy, error) {
	copies, err := s.Of(uid)
	if err != nil {
		return Copy{}, err
	}
	cause := "it has none"
	for at := len(copies) - 1; at >= 0; at-- {
		one := copies[at]
		switch {
		case one.State == Old:
			cause = fmt.Sprintf("what it has is of epoch %d, and the VM has run on elsewhere", one.Epoch)
		// One that was filled for the very epoch that has run is complete: the commit
		// says so, and who was to mark it did not come to it.
		case one.State == Filling && (one.Epoch != from || from == 0):
			cause = fmt.Sprintf("what it has was not copied in full for epoch %d", one.Epoch)
		case one.Epoch < from:
			cause = fmt.Sprintf("what it has is of epoch %d, and the VM's data are of epoch %d", one.Epoch, from)
		default:
			one.State, one.Epoch, one.RemoveAt = Good, max(one.Epoch, epoch), time.Time{}
			return one, s.Mark(one)
		}
	}
	code := fleet.Failed
	if len(copies) == 0 && from == 0 {
		code = fleet.NotFound
	}
	return Copy{}, &fleet.Error{
		Code: code, Op: "find local disks", Subject: "vm " + string(vm), Cause: "this host does not have them: " + cause,
		Hint: "see on the hosts that the VM was on what is left in " + s.dir,
	}
}

// Ran says that an instance with the copy runs, or may have.
func (s *Store) Ran(c Copy) error {
	c.State, c.RemoveAt = Good, time.Time{}
	return s.Mark(c)
}

// RemoveOlder removes what else the host has of the VM of a copy with which an instance
// runs. It may take its time.
func (s *Store) RemoveOlder(c Copy) error {
	copies, err := s.Of(c.UID)
	for _, one := range copies {
		if one.Dir != c.Dir && one.Epoch < c.Epoch {
			err = errors.Join(err, s.Remove(one))
		}
	}
	return err
}

// RemoveDue removes what is old for long enough, and gives when the next is; zero if
// there is none.
func (s *Store) RemoveDue(now time.Time) (next time.Time, err error) {
	copies, err := s.All()
	for _, one := range copies {
		switch {
		case one.State != Old || one.RemoveAt.IsZero():
		case !one.RemoveAt.After(now):
			err = errors.Join(err, s.Remove(one))
		case next.IsZero() || one.RemoveAt.Before(next):
			next = one.RemoveAt
		}
	}
	return next, err
}
