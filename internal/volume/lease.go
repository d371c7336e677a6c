package volume

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"slices"

	"godwit.dev/godwit/internal/fleet"
)

// maxStandbys is how many epochs may be prepared at once. One is usual; a few
// are left over if releases were lost on the way.
const maxStandbys = 8

// minKeySize is what makes guessing a key hopeless.
const minKeySize = 16 // bytes

// Peer is who is at the other end of a connection.
type Peer struct {
	Host     fleet.HostName // whose QEMU it is; "" for an operator
	Operator bool           // may use volumes that no host holds
}

func (p Peer) String() string {
	if p.Host != "" {
		return "host " + string(p.Host)
	}
	return "an operator"
}

// KeyHash is what the volume server knows of the secret that activates a lease:
// its SHA-256, in lower-case hexadecimal.
type KeyHash string

// HashKey gives the hash of a secret. The secret is random and long, so that a
// plain hash cannot be searched.
func HashKey(key []byte) KeyHash {
	sum := sha256.Sum256(key)
	return KeyHash(hex.EncodeToString(sum[:]))
}

func (h KeyHash) valid() bool {
	raw, err := hex.DecodeString(string(h))
	return err == nil && len(raw) == sha256.Size && string(h) == hex.EncodeToString(raw)
}

// fits compares without telling by its time how much was right.
func (h KeyHash) fits(key []byte) bool {
	return len(key) >= minKeySize && subtle.ConstantTimeCompare([]byte(h), []byte(HashKey(key))) == 1
}

// Standby is the lease of an epoch that may connect and read, and may become
// active.
type Standby struct {
	Epoch fleet.Epoch    `json:"epoch"`
	Host  fleet.HostName `json:"host"`
	Key   KeyHash        `json:"key"`
}

// Lease says who may use a volume. The zero value is that of a volume that no
// epoch has ever used. A Lease is a value: what changes it gives a new one.
type Lease struct {
	// Epoch is the greatest that was ever active; nothing brings an older one
	// back.
	Epoch fleet.Epoch `json:"epoch,omitempty"`
	// Holder is the host whose QEMU may write at Epoch; "" since the release.
	Holder fleet.HostName `json:"holder,omitempty"`
	// Key is that with which Epoch was activated, kept to know a repetition.
	Key KeyHash `json:"key,omitempty"`
	// Standbys are of greater epochs, in their order.
	Standbys []Standby `json:"standbys,omitempty"`
}

// right is what one connection may do.
type right int

const (
	none    right = iota
	standby       // read
	active        // read and write
)

// rightOf gives the right of a peer that has named an epoch. Operators name
// none: they may write while no host holds the volume.
func (l Lease) rightOf(peer Peer, epoch fleet.Epoch) right {
	switch {
	case epoch == 0 && peer.Operator && l.Holder == "":
		return active
	case epoch == 0 || peer.Host == "":
		return none
	case epoch == l.Epoch && peer.Host == l.Holder:
		return active
	case slices.ContainsFunc(l.Standbys, func(s Standby) bool { return s.Epoch == epoch && s.Host == peer.Host }):
		return standby
	}
	return none
}

// Grant gives a host the standby lease of an epoch that has not begun. A grant
// of the same epoch to another host, or with another key, takes the place of
// the earlier one: the target of a migration that was aborted has no use for it.
// A repetition gives the same Lease, also when it has become the active one.
func (l Lease) Grant(next Standby) (Lease, error) {
	refuse := func(code fleet.Code, cause string) (Lease, error) {
		return l, &fleet.Error{Code: code, Op: "grant standby lease", Cause: cause}
	}
	switch {
	case next.Epoch == 0:
		return refuse(fleet.Invalid, "there is no epoch 0")
	case fleet.CheckName(string(next.Host)) != nil:
		return refuse(fleet.Invalid, fmt.Sprintf("%q names no host", next.Host))
	case !next.Key.valid():
		return refuse(fleet.Invalid, "the key's hash is not a SHA-256 in lower-case hexadecimal")
	case next == (Standby{Epoch: l.Epoch, Host: l.Holder, Key: l.Key}):
		return l, nil
	case next.Epoch <= l.Epoch:
		return refuse(fleet.Conflict, fmt.Sprintf("epoch %d is over or has begun: the volume is at epoch %d", next.Epoch, l.Epoch))
	}
	others := l.without(next.Epoch)
	if len(others) >= maxStandbys {
		return refuse(fleet.Exhausted, fmt.Sprintf("%d epochs stand by already; release those that are not wanted", len(others)))
	}
	l.Standbys = append(others, next)
	slices.SortFunc(l.Standbys, func(a, b Standby) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return l, nil
}

// Activate makes a standby lease the active one. It takes the key of the grant,
// which whoever decides over the epoch gives to the host together with the
// decision. A repetition gives the same Lease.
func (l Lease) Activate(epoch fleet.Epoch, host fleet.HostName, key []byte) (Lease, error) {
	refuse := func(code fleet.Code, cause string) (Lease, error) {
		return l, &fleet.Error{Code: code, Op: "activate lease", Cause: cause}
	}
	if epoch != 0 && epoch == l.Epoch && host == l.Holder && l.Key.fits(key) {
		return l, nil
	}
	if epoch <= l.Epoch {
		return refuse(fleet.Conflict, fmt.Sprintf("epoch %d is over or is another's: the volume is at epoch %d", epoch, l.Epoch))
	}
	at := slices.IndexFunc(l.Standbys, func(s Standby) bool { return s.Epoch == epoch })
	switch {
	case at < 0:
		return refuse(fleet.Conflict, fmt.Sprintf("epoch %d has no standby lease", epoch))
	case l.Standbys[at].Host != host:
		return refuse(fleet.Denied, fmt.Sprintf("the standby lease of epoch %d is that of host %s", epoch, l.Standbys[at].Host))
	case !l.Standbys[at].Key.fits(key):
		return refuse(fleet.Denied, "the key is not that of the standby lease")
	}
	return Lease{Epoch: epoch, Holder: host, Key: l.Standbys[at].Key, Standbys: l.after(epoch)}, nil
}

// Release ends the lease of an epoch, standby or active. Of an epoch that has
// none, or one of another grant than only names if that is not "", it changes
// nothing, so that it can be repeated, and come late.
func (l Lease) Release(epoch fleet.Epoch, only KeyHash) Lease {
	if only != "" && !l.has(Standby{Epoch: epoch, Key: only}) {
		return l
	}
	if epoch == l.Epoch {
		l.Holder, l.Key = "", ""
	}
	l.Standbys = l.without(epoch)
	return l
}

// has tells whether an epoch's lease, of either kind, was granted with that key.
func (l Lease) has(one Standby) bool {
	if one.Epoch == l.Epoch {
		return l.Key == one.Key
	}
	return slices.ContainsFunc(l.Standbys, func(s Standby) bool { return s.Epoch == one.Epoch && s.Key == one.Key })
}

func (l Lease) without(epoch fleet.Epoch) []Standby {
	return slices.DeleteFunc(slices.Clone(l.Standbys), func(s Standby) bool { return s.Epoch == epoch })
}

func (l Lease) after(epoch fleet.Epoch) []Standby {
	return slices.DeleteFunc(slices.Clone(l.Standbys), func(s Standby) bool { return s.Epoch <= epoch })
}

// Idle tells whether nobody has or is to have the volume.
func (l Lease) Idle() bool { return l.Holder == "" && len(l.Standbys) == 0 }

func (l Lease) equal(other Lease) bool {
	return l.Epoch == other.Epoch && l.Holder == other.Holder && l.Key == other.Key && slices.Equal(l.Standbys, other.Standbys)
}
