// Package explain tells the story of one migration from its record as the API
// shows it: what was decided and why, everything that happened on one time
// axis, what each event led to, and what is still to be done. It is pure, and
// works on whatever a server of any version has put into the record.
//
// # Clocks
//
// Lines of the record's story have the time at which the server heard of them.
// The marks of the hand-over and the passes of the copy have the time of the
// host that measured them (the figures of an outcome are without what that makes
// wrong: see migration.Outcome). All are put in order as they are; where that cannot
// have been, because what must come first has the later time, the story says
// whose clock is ahead of whose, and by how much at least.
package explain
