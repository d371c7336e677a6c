// Package lifecycle keeps the life of VMs outside of migrations: hosts are told to
// start and to stop what the records say, what they report moves the records on, and
// what instances have left is removed.
//
// # The life of an instance
//
// Commands of a VM's life cycle have the VM's name as subject, the owner's
// epoch, and a fixed sequence each (sequenceStart and so on). Hosts answer and
// report by InstanceReport; only what the owner's host says of the owner's
// epoch counts. Exited with no cause or with "guest-shutdown" is the guest's
// own powering off; with any other cause it is a failure. Absent is a host's
// word that it has no such instance.
//
// An instance that may run is removed only when the store proves it stale: the
// VM's record is read first, then all its migrations. What one that has ended
// has left waits for the view to have the VM's record, which whatever begins
// a migration changes.
//
// # Hardware
//
// A change of a running VM's hardware is told to the owner's host until that has answered,
// and the VM's spec changes in the commit that records the answer. See change.go.
//
// # Order
//
// Save first, act after: a host is told something only once the record that says so
// is stored. Whatever decides reads the store itself, and commits under the
// conditions of its term: the view only says what to look at, and may be old. What a
// host says and the store does not take ends the host's session, since the host says
// it again in the next one.
//
// It knows neither the transport nor the machine: sessions, records, the clock and
// what waits are given to it. Run blocks; whatever else is exported takes no longer
// than the store. No lock is held over a call.
package lifecycle
