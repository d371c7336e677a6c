package migration

import (
	"fmt"

	"godwit.dev/godwit/internal/fleet"
)

const (
	// parallel is the number of connections of a copy that is to be fast. A
	// single one is bound by one processor: with TLS QEMU encrypts page by page,
	// and a second for the memory alone already takes half the time.
	parallel = 2
	// enoughForOne is a rate that one connection can have. Below it more of them
	// would only keep more in flight when the guest has stopped.
	enoughForOne fleet.BytesPerSecond = 125_000_000
)

// hold is the capability that leaves the end of the copy to the agent (QEMU 8.1).
const hold = "switchover-ack"

// SourceCapabilities gives those of the QEMU that runs a VM, whatever is installed
// on its host by now: by the VM's record or, if that does not tell, the host's.
func SourceCapabilities(vm fleet.VM, host fleet.Host) fleet.Capabilities {
	if vm.QEMU.Version != "" {
		return vm.QEMU.Capabilities
	}
	return host.QEMU.Capabilities
}

// Unheld: the source's QEMU may stop the guest by itself, at the end of the copy.
// One that did so runs the guest on by itself, too, if the copy fails after that;
// one whose guest was stopped before does not.
func Unheld(source fleet.Capabilities) bool { return !source.Can(hold) }

// Connections says how many connections carry the memory, and why. More than one
// needs two QEMUs that know it, and a source that leaves the end of the copy to
// its agent: one that does not is older than 8.1, and ends it by an estimate that
// does not know what several connections still hold.
func Connections(source, target fleet.Capabilities, policy Policy) (count int, why string) {
	const multifd = "multifd"
	switch {
	case policy.BandwidthMax > 0 && policy.BandwidthMax <= enoughForOne:
		return 1, fmt.Sprintf("one alone can carry %v, which is all that the copy may use", policy.BandwidthMax)
	case !source.Can(multifd):
		return 1, "the source's QEMU knows no more"
	case !target.Can(multifd):
		return 1, "the target's QEMU knows no more"
	case !source.Can(hold):
		return 1, "the source's QEMU ends the copy by an estimate, which would not hold for more"
	}
	return parallel, "a single one is bound by one processor, which encrypts page by page"
}
