package sim

import (
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// ending is an instance that a host has once said to have ended.
type ending struct {
	host  fleet.HostName
	vm    fleet.VMName
	epoch uint64
}

// noteEnding keeps it for the bug Unsparing.
func (s *server) noteEnding(host fleet.HostName, said *godwitv1.InstanceReport) {
	if s.bug(Unsparing) && said.GetState() == string(fleet.InstanceExited) {
		s.endings = append(s.endings, ending{host, fleet.VMName(said.GetVm()), said.GetEpoch()})
	}
}

// sweep is that bug: when a migration is over, whatever of its VM was once said to
// have ended is removed.
func (s *server) sweep(vm fleet.VMName) {
	for _, one := range s.endings {
		if one.vm == vm {
			_ = s.Send(one.host, &godwitv1.Command{ // to one that is away is no harm
				Subject: string(vm), Epoch: one.epoch, Sequence: 1 << 32,
				Op: &godwitv1.Command_ForgetInstance{ForgetInstance: &godwitv1.ForgetInstance{Vm: string(vm), Epoch: one.epoch}},
			})
		}
	}
}
