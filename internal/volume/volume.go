package volume

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// volume is one volume that is served.
//
// The gate orders writes and changes of the lease: each write holds it for
// reading from its look at the lease to its end, a change for writing from
// before it is saved until it counts. So when a change is done, every write of
// before is over, and none of before comes after.
type volume struct {
	name   fleet.VolumeName
	dir    string
	config config // as it was opened
	data   *backing
	leases *leaseFile
	size   atomic.Uint64

	gate     sync.RWMutex
	lease    Lease
	closed   bool // deleted, or the server ends
	attached map[*attachment]struct{}
	users    sync.Mutex // attached, by those that hold the gate for reading
}

// openVolume opens and locks what createVolume made.
func openVolume(dir string) (_ *volume, err error) {
	v := &volume{name: fleet.VolumeName(filepath.Base(dir)), dir: dir, attached: make(map[*attachment]struct{})}
	if v.config, err = readConfig(dir); err != nil {
		return nil, err
	}
	if v.data, err = openBacking(v.config.path(dir)); err != nil {
		return nil, err
	}
	if err := v.openRest(); err != nil {
		return nil, errors.Join(err, v.data.close())
	}
	return v, nil
}

func (v *volume) openRest() (err error) {
	there, err := v.data.size()
	if err != nil {
		return err
	}
	size := v.config.Size
	switch {
	case v.config.Device != "" && !v.data.device:
		return &fleet.Error{Code: fleet.Invalid, Op: "open", Subject: v.config.Device, Cause: "it is no block device",
			Hint: "to take over a file, create a volume of its size and copy it there"}
	case v.data.device:
		size = there
	}
	if there < size {
		return &fleet.Error{
			Code: fleet.Failed, Op: "open", Subject: v.config.path(v.dir),
			Cause: fmt.Sprintf("it has %d bytes, the volume %d", there, size),
			Hint:  "something has cut it; bring it back from a backup, or remove the folder " + v.dir,
		}
	}
	v.size.Store(uint64(size))
	v.leases, v.lease, err = openLeaseFile(filepath.Join(v.dir, leaseName))
	return err
}

// attachment is one connection's use of a volume at an epoch.
type attachment struct {
	volume *volume
	peer   Peer
	epoch  fleet.Epoch
	cut    func() // ends the connection at once, without waiting for it
}

// attach begins the use of a volume. From then on a change of the lease that
// takes the epoch's right away calls cut.
func (v *volume) attach(peer Peer, epoch fleet.Epoch, cut func()) (*attachment, error) {
	v.gate.RLock()
	defer v.gate.RUnlock()
	if err := v.admit(peer, epoch); err != nil {
		return nil, err
	}
	a := &attachment{volume: v, peer: peer, epoch: epoch, cut: cut}
	v.users.Lock()
	defer v.users.Unlock()
	v.attached[a] = struct{}{}
	return a, nil
}

// admit says why a peer may not use the volume. The caller holds the gate.
func (v *volume) admit(peer Peer, epoch fleet.Epoch) error {
	refusal := &fleet.Error{Code: fleet.Denied, Op: "connect to", Subject: "volume " + string(v.name)}
	switch {
	case v.closed:
		refusal.Code, refusal.Cause = fleet.NotFound, "it is not served any more"
	case v.lease.rightOf(peer, epoch) != none:
		return nil
	case epoch == 0 && peer.Operator:
		refusal.Code, refusal.Cause = fleet.Conflict, fmt.Sprintf("host %s holds it at epoch %d", v.lease.Holder, v.lease.Epoch)
		refusal.Hint = "stop the VM first"
	case epoch == 0:
		refusal.Cause = fmt.Sprintf("%v has to name its epoch, as %s@EPOCH", peer, v.name)
	default:
		refusal.Cause = fmt.Sprintf("%v has no lease of epoch %d", peer, epoch)
	}
	return refusal
}

// detach ends the use. The caller's writes are over.
func (a *attachment) detach() {
	a.volume.gate.RLock()
	defer a.volume.gate.RUnlock()
	a.volume.users.Lock()
	defer a.volume.users.Unlock()
	delete(a.volume.attached, a)
}

// write does one step that changes bytes, if the lease is the active one.
func (a *attachment) write(step func() error) error {
	a.volume.gate.RLock()
	defer a.volume.gate.RUnlock()
	if a.volume.closed || a.volume.lease.rightOf(a.peer, a.epoch) != active {
		return unix.EPERM
	}
	return step()
}

func (a *attachment) right() right {
	a.volume.gate.RLock()
	defer a.volume.gate.RUnlock()
	if a.volume.closed {
		return none
	}
	return a.volume.lease.rightOf(a.peer, a.epoch)
}

// flush makes durable what was written. The right to it is looked at, but no
// change of the lease waits for it: it changes no byte. Who stands by has
// written nothing yet, and so flushes nothing.
func (a *attachment) flush() error {
	switch a.right() {
	case active:
		return a.volume.data.flush()
	case standby:
		return nil
	}
	return unix.EPERM
}

// inSteps writes a long range piece by piece, so that a change of the lease
// waits for one piece at most.
func (a *attachment) inSteps(offset, length int64, step func(offset, length int64) error) error {
	for length > 0 {
		n := min(length, zeroStep)
		if err := a.write(func() error { return step(offset, n) }); err != nil {
			return err
		}
		offset, length = offset+n, length-n
	}
	return nil
}

// change puts a lease in place of the present one: durable first, then it
// counts, then whoever has no right by it any more is cut.
func (v *volume) change(next func(Lease) (Lease, error)) (Lease, error) {
	lease, cut, err := v.changeBehindGate(next)
	for _, a := range cut {
		a.cut()
	}
	return lease, err
}

func (v *volume) changeBehindGate(next func(Lease) (Lease, error)) (Lease, []*attachment, error) {
	v.gate.Lock()
	defer v.gate.Unlock()
	if v.closed {
		return Lease{}, nil, v.notServed()
	}
	lease, err := next(v.lease)
	if err != nil {
		return v.lease, nil, v.named(err)
	}
	if !lease.equal(v.lease) {
		if err := v.leases.save(lease); err != nil {
			return v.lease, nil, &fleet.Error{
				Code: fleet.Failed, Op: "save lease of", Subject: "volume " + string(v.name),
				Hint: "see to the disk of " + v.dir + "; then the same can be asked for again", Err: err,
			}
		}
	}
	v.lease = lease
	return lease, v.withoutRight(), nil
}

// named says which volume an error of a lease is about.
func (v *volume) named(err error) error {
	if e, ok := errors.AsType[*fleet.Error](err); ok && e.Subject == "" {
		e.Subject = "of volume " + string(v.name)
	}
	return err
}

func (v *volume) notServed() error {
	return &fleet.Error{Code: fleet.NotFound, Op: "use", Subject: "volume " + string(v.name), Cause: "it is not served any more"}
}

// withoutRight gives the connections to cut. The caller holds the gate.
func (v *volume) withoutRight() (cut []*attachment) {
	for a := range v.attached {
		if v.closed || v.lease.rightOf(a.peer, a.epoch) == none {
			cut = append(cut, a)
		}
	}
	return cut
}

// grow makes the volume larger. Connections that are open see it only when
// they are made anew: the protocol has no word for it.
// One call at a time, and none while the volume is deleted.
func (v *volume) grow(size fleet.Bytes) error {
	refuse := func(cause string) error {
		return &fleet.Error{Code: fleet.Invalid, Op: "grow", Subject: "volume " + string(v.name), Cause: cause}
	}
	if v.data.device {
		return v.growDevice(size, refuse)
	}
	if now := fleet.Bytes(v.size.Load()); size < now {
		return refuse(fmt.Sprintf("it has %d bytes; a volume never shrinks", now))
	}
	if err := v.data.grow(size); err != nil {
		return &fleet.Error{Code: fleet.Failed, Op: "grow", Subject: "volume " + string(v.name), Err: err}
	}
	next := v.config
	next.Size = size
	if err := next.replace(v.dir); err != nil {
		return err
	}
	v.size.Store(uint64(size))
	return nil
}

// growDevice takes up the size of a device that was made larger.
func (v *volume) growDevice(size fleet.Bytes, refuse func(string) error) error {
	there, err := v.data.size()
	if err != nil {
		return err
	}
	if size != there {
		return refuse(fmt.Sprintf("its device has %d bytes; make that one larger first, and give its size", there))
	}
	v.size.Store(uint64(size))
	return nil
}

// shut ends the serving. Unless forced it is refused while somebody uses the
// volume. When it returns, every write is over.
func (v *volume) shut(force bool) error {
	cut, err := v.shutBehindGate(force)
	for _, a := range cut {
		a.cut()
	}
	return err
}

func (v *volume) shutBehindGate(force bool) ([]*attachment, error) {
	v.gate.Lock()
	defer v.gate.Unlock()
	if !force {
		if err := v.checkIdle(); err != nil {
			return nil, err
		}
	}
	v.closed = true
	return v.withoutRight(), nil
}

func (v *volume) checkIdle() error {
	refusal := &fleet.Error{Code: fleet.Conflict, Op: "delete", Subject: "volume " + string(v.name)}
	switch {
	case v.lease.Holder != "":
		refusal.Cause = fmt.Sprintf("host %s holds it at epoch %d", v.lease.Holder, v.lease.Epoch)
		refusal.Hint = "stop the VM that uses it first"
	case !v.lease.Idle():
		refusal.Cause = fmt.Sprintf("host %s is to get it at epoch %d", v.lease.Standbys[0].Host, v.lease.Standbys[0].Epoch)
		refusal.Hint = "wait until the migration has ended"
	case len(v.attached) > 0:
		refusal.Cause = fmt.Sprintf("%d connections use it", len(v.attached))
		refusal.Hint = "end the programs that are connected"
	default:
		return nil
	}
	return refusal
}

// Info is what can be said of a volume.
type Info struct {
	Name        fleet.VolumeName
	Size        fleet.Bytes
	Allocated   fleet.Bytes // of the disk
	Device      string      // "" for a file
	Connections int
	Lease       Lease
	Problem     string // why it is not served; then only the name is known
}

func (v *volume) info() (Info, error) {
	v.gate.RLock()
	defer v.gate.RUnlock()
	v.users.Lock()
	defer v.users.Unlock()
	info := Info{
		Name: v.name, Size: fleet.Bytes(v.size.Load()), Device: v.config.Device,
		Connections: len(v.attached), Lease: v.lease,
	}
	if v.closed {
		return info, v.notServed()
	}
	var err error
	info.Allocated, err = v.data.allocated()
	return info, err
}
