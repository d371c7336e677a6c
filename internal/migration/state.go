package migration

// State is where a migration stands. The zero value is no state. The values
// are stored and sent, so they are never renamed.
type State string

// For every state: who runs vCPUs, who may write the volumes, where packets go
// and what happens when a party dies there. A host that an operator has declared
// lost is such a death, and nothing waits for its return (lost.go).
const (
	// Planned: the VM is locked and the target's capacity reserved.
	// vCPUs: source. Volumes: source. Packets: source.
	// Whatever dies: nothing was done yet, so it ends Aborted.
	Planned State = "planned"

	// Preparing: the target makes its ports, connects the volumes (without the
	// right to write) and starts its instance, which waits for state.
	// vCPUs: source. Volumes: source. Packets: source.
	// Target dies: rolled back. Source dies: the VM is down as it would be
	// without a migration; rolled back. Server dies: goes on with the pending
	// effect.
	Preparing State = "preparing"

	// Copying: memory goes over while the VM runs, and again what it changed; before
	// that the local disks, and from then on what it writes to them.
	// Near the end the source's agent closes its own gate, stops the VM and
	// lets QEMU finish: all of it can be undone, so it needs no leave.
	// vCPUs: source. Volumes: source. Packets: source, and the target's tap
	// from the closing of the gate on.
	// Target dies: rolled back. Source dies: the word that it had stopped may be
	// on its way, so it counts as a death in Switching. Server dies: goes on with
	// the pending effect.
	Copying State = "copying"

	// Switching: the source has stopped, its gate redirects, and what was left
	// is on its way. The target loads and stays paused.
	// vCPUs: none. Volumes: source's right, but idle. Packets: wait in the
	// target's tap.
	// Target dies: rolled back, the waiting packets return. Source dies: the
	// target may still have everything, so its commit is awaited until the
	// deadline; but after a source that nobody held (Unheld) it is rolled back
	// at once. Server dies: nobody moves until one is back, or the switch
	// deadline ends it.
	Switching State = "switching"

	// Settling: committed; the target owns the VM.
	// vCPUs: target. Volumes: target. Packets: target, directly or forwarded
	// by the source until every host knows the new address.
	// Source dies: nothing but the forwarding is lost. Target dies: before
	// it has run, the source has the VM back; after that the VM is down as any
	// VM whose host dies. Server dies: the target has its right.
	Settling State = "settling"

	// RollingBack: aborted; the source runs on and the target is undone.
	// vCPUs: source. Volumes: source. Packets: source; those that waited at
	// the target return.
	RollingBack State = "rolling-back"

	// Succeeded: the VM runs at the target and nothing is left at the source.
	Succeeded State = "succeeded"

	// Aborted: the VM is where it was and nothing is left at the target.
	Aborted State = "aborted"

	// NeedsOperator: Godwit can't tell or mend it alone; Remedies names the
	// commands that can. Its pending effects are still carried out when their
	// host comes back, and end it if they can.
	NeedsOperator State = "needs-operator"
)

// States lists all states in the order of a migration's life.
func States() []State {
	return []State{Planned, Preparing, Copying, Switching, Settling, RollingBack, Succeeded, Aborted, NeedsOperator}
}

// Final reports whether nothing more is decided by time in this state: only a
// host's late answer or an operator leads out of it. See [Migration.Locked] for
// the lock on the VM.
func (s State) Final() bool {
	return s == Succeeded || s == Aborted || s == NeedsOperator
}
