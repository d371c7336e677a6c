// Package store keeps the truth of a fleet in etcd: versioned records,
// all-or-nothing compare-and-swap, ordered watches and a leader key. It is the
// only package that knows etcd. The same client code runs against a server
// embedded in this process and against an external cluster.
//
// # Ordering
//
// Every successful Commit makes one new revision, which is the Version of all
// records it put. Revisions grow over the whole store, reads are linearizable
// (they see every Commit that returned before they began), and a Watch gives
// events in order of revision, those of one Commit one after the other.
//
// # Outcomes of a Commit
//
// There are three: done (no error), not done (any error for which
// errors.Is(err, ErrOutcomeUnknown) is false), and unknown (an error wrapping
// ErrOutcomeUnknown: code Unavailable when the reply was lost, Exhausted when
// the database reached its quota with this Commit or before it). After an
// unknown outcome the caller reads the records again before it does anything
// that depends on it.
//
// # Durability
//
// A Commit returns after its log entry was synced to disk: one fdatasync on
// the embedded server, on a majority of members of a cluster.
//
// # Ownership
//
// The caller of Open closes the Store, after it has ended its watches and
// leaderships; those that are still open then end with an error. A Store is
// safe for concurrent use. The embedded server listens on nothing: it is
// reachable only through the Store, and one process at a time holds its folder.
//
// # When the embedded server breaks
//
// etcd must not go on after a failed write to its log. The embedded server
// then stands still for good: Failed is closed, every call fails with
// Unavailable, and the process should end. Nothing that was acknowledged is
// lost.
package store
