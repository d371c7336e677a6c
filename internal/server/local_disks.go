package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// removeDisksAgain is the pause between tries to have local disks removed.
const removeDisksAgain = 20 * time.Second

// diskLeftover is what a VM that was deleted has left on a host. Its record is there
// until the host has removed it; nothing waits for that.
type diskLeftover struct {
	VM   fleet.VMName      `json:"vm"`
	UID  fleet.InstanceUID `json:"uid"`
	Host fleet.HostName    `json:"host"`
}

func leftoverKey(uid fleet.InstanceUID, host fleet.HostName) string {
	return fmt.Sprintf("%s.%s", uid, host)
}

// leaveDisks gives the change that has the local disks of a deleted VM removed.
func (t tables) leaveDisks(vm fleet.VM) (ops []store.Op) {
	if vm.Local.Host == "" {
		return nil
	}
	for _, host := range append(slices.Clone(vm.Local.Earlier), vm.Local.Host) {
		left := diskLeftover{VM: vm.Name, UID: vm.UID, Host: host}
		ops = append(ops, t.diskLeftovers.Put(leftoverKey(left.UID, left.Host), left))
	}
	return ops
}

// removeDisks tells hosts to remove what was left on them, until ctx ends.
func (s *Server) removeDisks(ctx context.Context) {
	for ctx.Err() == nil {
		entries, revision, err := s.tables.diskLeftovers.All(ctx)
		if err != nil {
			s.log.Warn("not known which local disks are to be removed", "error", err)
		}
		for _, entry := range entries {
			left := entry.Value
			if err := s.hub.Send(left.Host, removeDisksCommand(left)); err != nil {
				s.log.Debug("local disks of a deleted VM stay until their host is back", "vm", left.VM, "host", left.Host, "error", err)
			}
		}
		s.awaitDisksLeft(ctx, revision)
	}
}

func removeDisksCommand(left diskLeftover) *godwitv1.Command {
	return &godwitv1.Command{
		Subject: string(left.VM), Uid: string(left.UID), Sequence: 1,
		Op: &godwitv1.Command_RemoveDisks{RemoveDisks: &godwitv1.RemoveDisks{Vm: string(left.VM), Uid: string(left.UID)}},
	}
}

// awaitDisksLeft returns when there are more than at a revision, or after a while.
func (s *Server) awaitDisksLeft(ctx context.Context, revision int64) {
	ctx, cancel := context.WithTimeout(ctx, removeDisksAgain)
	defer cancel()
	for event := range s.tables.diskLeftovers.Watch(ctx, revision).Events() {
		if !event.Deleted {
			return
		}
	}
	<-ctx.Done()
}

// disksRemoved takes a host's word that it has removed what a VM had left.
func (s *Server) disksRemoved(ctx context.Context, host fleet.HostName, report *godwitv1.Report) error {
	key := leftoverKey(fleet.InstanceUID(wire.Bounded(report.GetDisksRemoved().GetUid())), host)
	entry, err := s.tables.diskLeftovers.Get(ctx, key)
	if fleet.CodeOf(err) == fleet.NotFound {
		return nil // it was said before
	}
	if err == nil {
		_, err = s.tables.store.Commit(ctx, store.If(s.tables.diskLeftovers.At(key, entry.Version)), s.tables.diskLeftovers.Delete(key))
	}
	if err != nil { // it is asked, and says it, again
		s.log.Warn("not recorded that local disks were removed", "host", host, "vm", entry.Value.VM, "error", err)
	}
	return nil
}
