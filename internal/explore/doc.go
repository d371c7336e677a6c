// Package explore walks through every state that one migration can come to: the
// real core, Step, between models of all that is around it. It is pure.
//
// # What is modelled
//
// The stored record is a real one. The server takes any event at any time: every
// report that a host ever made may come late, again, out of order or never. Any
// deadline may pass at any moment. A command that is pending may reach its host
// at any time and again and again; one that no longer is may still be on its
// way, until the host has taken a newer one or its agent has ended. The commit's
// answer may be lost.
//
// A host has an agent, which can die between any two of its steps and come back
// with what it has written down and what the kernel kept (the gates); and a
// QEMU, as it was measured: its source runs on by itself when its migration
// fails, if QEMU and not the agent had stopped the guest (AutoResume); what it
// sent last may have arrived though it says that it failed; a target that failed
// is not used again.
//
// Faults, a bounded number: a QEMU is killed, an agent dies, a host dies, the
// stream of the copy is cut. A cancel may come once.
//
// # What is checked
//
// In every state: never two instances whose vCPUs run behind open gates; never
// the source again once the target has run; no event that the core calls broken.
// In every state at rest: the record is final and says why, what it says is
// true, exactly one instance is in effect unless a fault killed that which the
// VM was on, and nothing is left on a host that lives. And from every state some
// state at rest can be reached without another fault.
package explore
