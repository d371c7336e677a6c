// Package explain tells the story of one migration from its record as the API
// shows it: what was decided and why, everything that happened on one time
// axis, what each event led to, and what is still to be done. It is pure, and
// works on whatever a server of any version has put into the record.
//
// # Clocks
//
// Lines of the record's story have the time at which the server heard of them.
// The marks of the hand-over and the passes of the copy have the time of the
// host that measured them. All are put on one axis, the server's clock: what led
// to what bounds how far a host's clock is ahead of it, and its times are moved
// by the least that the bounds allow. The distance between the two hosts' clocks
// is that which the figures of the outcome are without (migration.Outcome), where
// they are corrected. The story says by how much times were moved, keeps those
// that were noted, and says whose clock is ahead of whose, and by how much at
// least, where that is proven.
//
// The entries of the story are in the order in which they were written. One with
// an earlier time than that before it was written by another server, and is moved
// too.
package explain
