package migration

import "godwit.dev/godwit/internal/fleet"

const (
	// parallel is the number of connections of a copy that is to be fast. A
	// single one is bound by one processor: with TLS QEMU encrypts page by page,
	// and a second for the memory alone already takes half the time.
	parallel = 2
	// enoughForOne is a rate that one connection can have. Below it more of them
	// would only keep more in flight when the guest has stopped.
	enoughForOne fleet.BytesPerSecond = 125_000_000
)

// Connections says how many connections carry the memory. More than one needs
// two QEMUs that know it, and a source that leaves the end of the copy to its
// agent: one that does not is older than 8.1, and ends it by an estimate that
// does not know what several connections still hold.
func Connections(source, target fleet.QEMUFeatures, policy Policy) int {
	const multifd, hold = "multifd", "switchover-ack"
	switch {
	case policy.BandwidthMax > 0 && policy.BandwidthMax <= enoughForOne:
	case source.Can(multifd) && source.Can(hold) && target.Can(multifd):
		return parallel
	}
	return 1
}
