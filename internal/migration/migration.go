package migration

import (
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Migration is the record of one move of one VM.
type Migration struct {
	ID      fleet.MigrationID         `json:"id"`
	VM      fleet.VMName              `json:"vm"`
	UID     fleet.InstanceUID         `json:"uid"`
	Source  fleet.HostName            `json:"source"`
	Target  fleet.HostName            `json:"target"`
	Epoch   fleet.Epoch               `json:"epoch"`   // the source's
	Tunnels map[string]fleet.TunnelID `json:"tunnels"` // by port
	Reason  string                    `json:"reason"`
	Policy  Policy                    `json:"policy"`
	Choice  Choice                    `json:"choice,omitzero"`
	Refused []RefusedHost             `json:"refused,omitempty"` // hosts that could not be the target
	Why     string                    `json:"why,omitempty"`     // the target was chosen
	// Connections carry the memory; 1, or 0 in old records: QEMU's main one does.
	Connections    int    `json:"connections,omitempty"`
	ConnectionsWhy string `json:"connectionsWhy,omitempty"` // so many

	// The QEMUs of both instances, as far as they are known: the target's has none
	// before it is prepared.
	SourceQEMU fleet.InstanceQEMU `json:"sourceQEMU,omitzero"`
	TargetQEMU fleet.InstanceQEMU `json:"targetQEMU,omitzero"`
	// The source's machine before the copy, and how the target's compared with it;
	// nil if it was not.
	Machine  fleet.Machine `json:"machine,omitempty"`
	Compared *Comparison   `json:"compared,omitempty"`
	// ImageWait is nil unless the target waits for a lock.
	ImageWait *ImageWait `json:"imageWait,omitempty"`
	Foreseen  Foreseen   `json:"foreseen,omitzero"`

	State     State     `json:"state"`
	Committed bool      `json:"committed"`
	Cause     string    `json:"cause,omitempty"`
	Remedies  []string  `json:"remedies,omitempty"`
	Created   time.Time `json:"created"`
	Ended     time.Time `json:"ended,omitzero"`
	Exported  time.Time `json:"exported,omitzero"` // to the server's file, since when no more than notes were added

	Sequence uint64   `json:"sequence"` // of the newest effect
	Pending  []Effect `json:"pending,omitempty"`
	Timer    *Timer   `json:"timer,omitempty"`

	Port           uint16 `json:"port,omitempty"`           // the target's QEMU listens there
	DiskPort       uint16 `json:"diskPort,omitempty"`       // and takes the VM's local disks there
	CopyStarted    bool   `json:"copyStarted,omitempty"`    // the source may have closed its gate
	Unheld         bool   `json:"unheld,omitempty"`         // the source's QEMU may stop the guest by itself, and run it on if the copy then fails
	SourceSent     bool   `json:"sourceSent,omitempty"`     // the source's QEMU has the target's word that it loaded, so it does not
	TargetAsked    bool   `json:"targetAsked,omitempty"`    // for the commit, which waits for that
	SourceGone     bool   `json:"sourceGone,omitempty"`     // the source's instance has ended
	TakenBack      bool   `json:"takenBack,omitempty"`      // after the commit: the target never ran and never will
	TargetRuns     bool   `json:"targetRuns,omitempty"`     // it has run its first instruction
	SourceLost     bool   `json:"sourceLost,omitempty"`     // an operator says that the source's host is off for good
	TargetLost     bool   `json:"targetLost,omitempty"`     // and that the target's is
	LostUnheard    bool   `json:"lostUnheard,omitempty"`    // and nobody had heard whether that used its right, or refused it
	Abandoned      bool   `json:"abandoned,omitempty"`      // its record was of an old copy of the store
	TargetGone     bool   `json:"targetGone,omitempty"`     // after the commit: no instance has the VM any more that may run
	AddressesKnown bool   `json:"addressesKnown,omitempty"` // by every host that is not gone
	Unaware        string `json:"unaware,omitempty"`        // which ones are, one sentence
	InGrace        bool   `json:"inGrace,omitempty"`        // all has come, and forwarding goes on for the grace time
	Released       bool   `json:"released,omitempty"`       // the forwarding was told to end

	Progress       Progress     `json:"progress,omitzero"`
	Passes         []Pass       `json:"passes,omitempty"`
	SourceMarks    *SourceMarks `json:"sourceMarks,omitempty"`
	TargetMarks    *TargetMarks `json:"targetMarks,omitempty"`
	FramesReturned int          `json:"framesReturned,omitempty"`
	ReturnError    string       `json:"returnError,omitempty"` // why others were not
	Story          []Entry      `json:"story"`
}

// Choice is how the target was chosen, beside Refused and Why.
type Choice struct {
	Named    bool        `json:"named,omitempty"`    // by the request, so that no other host was considered
	Others   []OtherHost `json:"others,omitempty"`   // that could have been the target, the best first
	Unlisted int         `json:"unlisted,omitempty"` // hosts that the record has no room for
}

// OtherHost is a host that fitted and scored lower, and what it had to offer.
type OtherHost struct {
	Host fleet.HostName `json:"host"`
	Why  string         `json:"why"`
}

// RefusedHost is a host that could not be the target, and why.
type RefusedHost struct {
	Host fleet.HostName `json:"host"`
	Why  []string       `json:"why"`
}

// maxPasses bounds a record, so that no guest can grow it without end.
const maxPasses = 200

// Timer asks for a TimerFired event when After has passed. At is when that is by
// the clock of the server that set it, and tells the timer from others; another
// server's clock may be hours from it.
type Timer struct {
	At    time.Time     `json:"at"`
	After time.Duration `json:"after,omitempty"` // 0 in old records
	What  string        `json:"what"`            // what has then failed or is over
}

// New gives a planned migration. The caller has chosen the target, and stores
// it together with the VM's lock and the target's reservation.
func New(id fleet.MigrationID, vm fleet.VM, target fleet.HostName, tunnels map[string]fleet.TunnelID, policy Policy, reason string, now time.Time) Migration {
	m := Migration{
		ID: id, VM: vm.Name, UID: vm.UID,
		Source: vm.Owner.Host, Target: target, Epoch: vm.Owner.Epoch,
		Tunnels: tunnels, Policy: policy, Reason: reason,
		State: Planned, Created: now, SourceQEMU: vm.QEMU,
	}
	m.setTimer(now, policy.PrepareMax, "nobody took it up")
	return m
}

// Owner gives the only instance that may act for the VM. Every change of owner
// has an epoch of its own, also that which gives the VM back to the source.
func (m *Migration) Owner() fleet.Owner {
	switch {
	case m.TakenBack:
		return fleet.Owner{Host: m.Source, Epoch: m.Epoch + 2}
	case m.Committed:
		return fleet.Owner{Host: m.Target, Epoch: m.Epoch + 1}
	}
	return fleet.Owner{Host: m.Source, Epoch: m.Epoch}
}

// OwnerQEMU is that of the owner's instance.
func (m *Migration) OwnerQEMU() fleet.InstanceQEMU {
	if m.Owner().Host == m.Target {
		return m.TargetQEMU
	}
	return m.SourceQEMU
}

// Locked reports whether the VM's record is still the migration's to change:
// until its end, and then as long as either host may still be told to run it,
// or does so by itself.
func (m *Migration) Locked() bool {
	return !m.State.Final() || m.State == NeedsOperator && !m.TargetRuns && !m.TargetGone && !m.Abandoned || m.SourceMayRunOn()
}

// SourceMayRunOn: the target was lost with a right that nobody knows it to have
// used. It may have refused it before, asked by its source, which then runs on. As
// long as that has not answered, it may say so.
func (m *Migration) SourceMayRunOn() bool {
	return m.State == NeedsOperator && m.LostUnheard && !m.SourceGone && !m.Abandoned && m.isPending(ReleaseSource)
}

// Down reports that no instance has the VM any more, as far as it is known
// here, so that it must be started anew.
func (m *Migration) Down() bool {
	switch {
	case m.TargetGone:
		return true
	case m.Owner().Host == m.Source:
		return m.SourceLost
	}
	return m.TargetLost
}

// Over: neither host has anything left to do for it.
func (m *Migration) Over() bool { return m.State.Final() && len(m.Pending) == 0 }

// Closed: nothing more is to be expected of it. Neither host has anything left to
// do, nor does it lock the VM.
func (m *Migration) Closed() bool { return m.Over() && !m.Locked() }

// AwaitsSource: the target has loaded everything, but the source's QEMU may yet
// run the guest on by itself.
func (m *Migration) AwaitsSource() bool {
	return m.State == Switching && m.TargetAsked && !m.SourceSent
}

// AwaitsTarget: the target has the right to run, and there is no word from it. It
// may yet refuse, so others go on to send to the source, which forwards.
func (m *Migration) AwaitsTarget() bool {
	return m.Committed && !m.TargetRuns && !m.TargetGone && !m.TakenBack && !m.Abandoned
}

// Involves reports whether host is the source or the target.
func (m *Migration) Involves(host fleet.HostName) bool {
	return host == m.Source || host == m.Target
}

func (m *Migration) setTimer(from time.Time, after time.Duration, what string) {
	m.Timer = &Timer{At: from.Add(after), After: after, What: what}
}
