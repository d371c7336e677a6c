// Package explore walks through every state that one migration can come to: the
// real core, Step, between models of all that is around it. It is pure.
//
// # What is modelled
//
// The stored record is a real one. The server takes any event at any time: every
// report that a host ever made may come late, again, out of order or never. Any
// deadline may pass at any moment, and any that was set anew since. A command
// that is pending may reach its host at any time and again and again; one that no
// longer is may still be on its way, until the host has taken a newer one or its
// agent has ended. The commit's answer may be lost.
//
// A host has an agent, which can die between any two of its steps and come back
// with what it has written down and what the kernel kept (the gates); and a
// QEMU, as it was measured: its source runs on by itself when its migration
// fails, if QEMU and not the agent had stopped the guest (AutoResume), as soon as
// it can have the images; a target that failed is not used again. Of frames it is
// known whether some wait at the target, and whether every host sends there.
//
// Faults, a bounded number: a QEMU is killed, an agent dies, a host dies, the
// stream of the copy is cut, a target does not run at first. A cancel may come
// once. Of a target's host that is off somebody may ask for the VM's return; if it
// had run the VM, and no server knew, what it did is lost by that word and not by the
// core. Each host that is off may be declared lost, in every state of the migration.
// That of a host that is not off is not explored: the operator vouches for it.
//
// # What is checked
//
// In every state: never two instances whose vCPUs run behind open gates, nor two
// that run at all; never the source again once the target has run; no event that
// the core calls broken; no order to a host that has nothing to carry it out, and
// none without end; a VM that may yet be told to run is locked; and of one that is
// free and counts as down, so that it may be started elsewhere, no instance runs. In
// every step: the last instance that has all of the VM is not ended, unless nobody can
// say what a lost target has done; no frame is lost that waits at the target, or that
// a host still sends to the source; no deadline counts that was set anew. In every
// state at rest: the record is final and says why, what it says is true, exactly one
// instance is in effect unless a fault killed that which the VM was on, an operator is
// asked for only where one can help, nothing is left on a host that lives, and nothing
// waits for one that was declared lost. And from every state some state at rest can be
// reached without another fault.
//
// [Mutants] are the core with one guard taken out each: all must be caught.
// [UnmissedGuards] are those that make no difference.
package explore
