package migration

import (
	"fmt"
	"strings"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Request is a kind of request that can meet a migration: it means the VM, one
// of its two hosts or a network that the VM has a port in. That a migration is
// to be cancelled is an event, and decided by the table of events.
type Request string

// The requests.
const (
	Read          Request = "read"    // show, list and watch
	StartVM       Request = "start"   // here or elsewhere
	MigrateVM     Request = "migrate" // once more
	StopVM        Request = "stop"
	DeleteVM      Request = "delete"          // which only a VM can be that is stopped
	ChangeVM      Request = "change hardware" // of the VM: add or remove a disk or a port
	ChangeHost    Request = "change host"     // cordon, uncordon, a token for its agent
	ChangeNetwork Request = "change network"  // attach, detach, delete
)

// Requests lists all kinds of requests.
func Requests() []Request {
	return []Request{Read, StartVM, MigrateVM, ChangeVM, StopVM, DeleteVM, ChangeHost, ChangeNetwork}
}

// Class says what becomes of a request during a migration.
type Class string

// The classes.
const (
	// Allow: it is done as it would be without the migration, whose VM's record
	// it does not change.
	Allow Class = "allow"
	// Block: it is refused for now, with the reason and an estimate.
	Block Class = "block"
	// Cancel: the migration is cancelled, and when it has ended the request is
	// done.
	Cancel Class = "cancel"
	// Wait: it is done when the migration has ended, which is too late to be
	// cancelled.
	Wait Class = "wait"
)

// classes decides every request in every state. Hardware is not changed under a copy
// of it: nothing of that is so urgent that a move should be given up. A cordon is about what comes
// after: a migration that has its place on the target goes on. And a network is
// kept by the VM's ports, wherever the VM is.
var classes = map[State]map[Request]Class{
	Planned: {
		Read: Allow, StartVM: Block, MigrateVM: Block, ChangeVM: Block, StopVM: Cancel, DeleteVM: Cancel, ChangeHost: Allow, ChangeNetwork: Allow,
	},
	Preparing: {
		Read: Allow, StartVM: Block, MigrateVM: Block, ChangeVM: Block, StopVM: Cancel, DeleteVM: Cancel, ChangeHost: Allow, ChangeNetwork: Allow,
	},
	Copying: {
		Read: Allow, StartVM: Block, MigrateVM: Block, ChangeVM: Block, StopVM: Cancel, DeleteVM: Cancel, ChangeHost: Allow, ChangeNetwork: Allow,
	},
	Switching: {
		Read: Allow, StartVM: Block, MigrateVM: Block, ChangeVM: Block, StopVM: Cancel, DeleteVM: Cancel, ChangeHost: Allow, ChangeNetwork: Allow,
	},
	Settling: {
		Read: Allow, StartVM: Block, MigrateVM: Block, ChangeVM: Block, StopVM: Wait, DeleteVM: Wait, ChangeHost: Allow, ChangeNetwork: Allow,
	},
	RollingBack: {
		Read: Allow, StartVM: Block, MigrateVM: Block, ChangeVM: Block, StopVM: Wait, DeleteVM: Wait, ChangeHost: Allow, ChangeNetwork: Allow,
	},
	Succeeded: {
		Read: Allow, StartVM: Allow, MigrateVM: Allow, ChangeVM: Allow, StopVM: Allow, DeleteVM: Allow, ChangeHost: Allow, ChangeNetwork: Allow,
	},
	Aborted: {
		Read: Allow, StartVM: Allow, MigrateVM: Allow, ChangeVM: Allow, StopVM: Allow, DeleteVM: Allow, ChangeHost: Allow, ChangeNetwork: Allow,
	},
	// While it still holds the VM. Nobody knows when that ends, so nobody is
	// made to wait for it.
	NeedsOperator: {
		Read: Allow, StartVM: Block, MigrateVM: Block, ChangeVM: Block, StopVM: Block, DeleteVM: Block, ChangeHost: Allow, ChangeNetwork: Allow,
	},
}

// Class says what becomes of a request for the VM. One that has given the lock
// back is in nobody's way.
func (m *Migration) Class(request Request) Class {
	if !m.Locked() {
		return Allow
	}
	return classes[m.State][request]
}

// Blocked says, for whoever asked for op, why it has to wait and for how long.
func (m *Migration) Blocked(op string, now time.Time) error {
	refusal := &fleet.Error{
		Code: fleet.Conflict, Op: op, Subject: "vm " + string(m.VM),
		Cause:      fmt.Sprintf("migration %s from %s to %s holds it; its state is %s", m.ID, m.Source, m.Target, m.State),
		Hint:       fmt.Sprintf("follow it with: godwit migration watch %s", m.ID),
		RetryAfter: m.FreeIn(now),
	}
	switch p := m.Progress; {
	case m.State == Copying && !p.At.IsZero():
		refusal.Cause += fmt.Sprintf(", pass %d, %v of %v left", p.Pass, p.Remaining, p.Total)
	case m.State == NeedsOperator:
		refusal.Cause += ": " + m.Cause
		refusal.Hint = "what helps: " + strings.Join(m.Remedies, "; ")
	}
	if table[m.State][CancelAsked].verdict == Act {
		refusal.Hint += fmt.Sprintf("; end it with: godwit migration cancel %s", m.ID)
	}
	return refusal
}
