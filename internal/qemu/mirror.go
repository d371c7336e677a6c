package qemu

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

// Mirroring says where a source copies its local disks to, and how.
type Mirroring struct {
	Address     netip.AddrPort // of the target's Export
	CredsDir    string         // as of Outgoing
	TLSHostname string
	// BandwidthMax bounds the copy of all disks together, but not what the guest
	// writes once a mirror is Synced; 0 does not.
	BandwidthMax fleet.BytesPerSecond
}

// Mirror is how far the copy of one disk is.
type Mirror struct {
	Disk   string
	Copied fleet.Bytes
	Total  fleet.Bytes // grows with what the guest writes
	Ready  bool        // all of it was copied once, and what the guest writes follows
	Synced bool        // what the guest writes is written to both, before the guest is told
	Ended  bool        // by an Error, or after FinishMirrors: what the guest writes is not followed
	Error  string
}

// mirrorCreds is the QEMU object with which a target's exports are reached.
const mirrorCreds = "godwit-mirror"

// mirrorJob and mirrorNode name the job that copies a disk, and the node of the
// target's export.
func mirrorJob(disk string) string  { return disk + mirrorSuffix }
func mirrorNode(disk string) string { return disk + "-target" }

const mirrorSuffix = "-mirror"

// mirrorOpenTimeout is how long a target may take to be connected to, in seconds:
// QEMU does nothing else meanwhile, and the guest waits.
const mirrorOpenTimeout = 2

// StartMirrors begins to copy the local disks, all at once. What an earlier one has
// left must have been abandoned.
func (i *Instance) StartMirrors(ctx context.Context, to Mirroring) error {
	return i.wrap("copy disks", i.startMirrors(ctx, to))
}

func (i *Instance) startMirrors(ctx context.Context, to Mirroring) error {
	if to.CredsDir != "" {
		if err := i.readCreds(ctx, mirrorCreds, to.CredsDir); err != nil {
			return err
		}
	}
	disks := i.localDisks()
	for _, disk := range disks {
		if err := i.monitor.Execute(ctx, "blockdev-add", to.node(disk), nil); err != nil {
			return err
		}
	}
	mode := qmp.MirrorCopyModeWriteBlocking
	if i.canChangeMirrors() { // the guest need not wait for the target yet
		mode = qmp.MirrorCopyModeBackground
	}
	for _, disk := range disks {
		err := qmp.BlockdevMirror(ctx, i.monitor, qmp.BlockdevMirrorArgs{
			JobID: new(mirrorJob(disk)), Device: disk, Target: mirrorNode(disk), Sync: "full", CopyMode: mode,
			OnTargetError: new("report"), OnSourceError: new("report"), AutoDismiss: new(false),
			Speed: new(mirrorSpeed(to.BandwidthMax, len(disks))),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// node is how QEMU opens the export of a disk. Zeros are not sent.
func (m Mirroring) node(disk string) blockNode {
	node := blockNode{
		Driver: "nbd", NodeName: mirrorNode(disk), Discard: "unmap", DetectZeroes: "unmap",
		Server: &socketAddress{Type: "inet", Host: m.Address.Addr().String(), Port: strconv.Itoa(int(m.Address.Port()))},
		Export: disk, OpenTimeout: mirrorOpenTimeout,
	}
	if m.CredsDir != "" {
		node.TLSCreds, node.TLSHostname = mirrorCreds, m.TLSHostname
	}
	return node
}

// canChangeMirrors: they need not be in step with the guest from the beginning
// (QEMU 8.2).
func (i *Instance) canChangeMirrors() bool { return i.can.Schema.HasCommand("block-job-change") }

// mirrorSpeed is the share of one of so many disks; 0 is no limit.
func mirrorSpeed(limit fleet.BytesPerSecond, disks int) int64 {
	if limit <= 0 || limit > unlimited {
		return 0
	}
	return max(int64(limit)/int64(max(disks, 1)), 1)
}

// Mirrors tells how far the copy of each disk is, in the order of the disks; none of
// disks that are not copied.
func (i *Instance) Mirrors(ctx context.Context) ([]Mirror, error) {
	jobs, err := i.mirrorJobs(ctx)
	if err != nil {
		return nil, i.wrap("ask for the copy of disks", err)
	}
	var mirrors []Mirror
	for at, disk := range i.Config().Disks {
		job := jobs[diskID(fleet.DiskSlot(disk.Slot, at))]
		if job == nil {
			continue
		}
		one := Mirror{Disk: disk.Name, Copied: amount(job.Offset), Total: amount(job.Len), Ready: job.Ready, Synced: job.Ready}
		if job.ActivelySynced != nil {
			one.Synced = *job.ActivelySynced
		}
		if one.Ended = job.Status == string(qmp.JobStatusConcluded); job.Error != nil {
			one.Error = *job.Error
		}
		mirrors = append(mirrors, one)
	}
	return mirrors, nil
}

// mirrorJobs gives QEMU's jobs by the node of the disk.
func (i *Instance) mirrorJobs(ctx context.Context) (map[string]*qmp.BlockJob, error) {
	all, err := qmp.QueryBlockJobs(ctx, i.monitor)
	return mirrorsOf(all), err
}

func mirrorsOf(all []qmp.BlockJob) map[string]*qmp.BlockJob {
	jobs := map[string]*qmp.BlockJob{}
	for _, job := range all {
		if disk, mirrors := strings.CutSuffix(job.Device, mirrorSuffix); mirrors {
			jobs[disk] = &job
		}
	}
	return jobs
}

// SyncMirrors makes the guest's writes wait for the target, too, so that there comes
// a moment at which both have the same: see Mirror.Synced. All must be Ready. QEMU
// before 8.2 has done it from the beginning.
func (i *Instance) SyncMirrors(ctx context.Context) error {
	if !i.canChangeMirrors() {
		return nil
	}
	for _, disk := range i.localDisks() {
		change := qmp.BlockJobChangeArgs{ID: mirrorJob(disk), Type: "mirror", CopyMode: qmp.MirrorCopyModeWriteBlocking}
		if err := qmp.BlockJobChange(ctx, i.monitor, change); err != nil {
			return i.wrap("bring disks into step", err)
		}
	}
	return nil
}

// awaitMirrors waits until all mirrors have ended, and gives how.
func (i *Instance) awaitMirrors(ctx context.Context, events *qmp.Subscription) (ended []qmp.Job, err error) {
	for {
		jobs, err := qmp.QueryJobs(ctx, i.monitor)
		if err != nil {
			return nil, err
		}
		jobs = slices.DeleteFunc(jobs, func(job qmp.Job) bool { return !strings.HasSuffix(job.ID, mirrorSuffix) })
		if !slices.ContainsFunc(jobs, func(job qmp.Job) bool { return job.Status != qmp.JobStatusConcluded }) {
			return jobs, nil
		}
		select {
		case _, open := <-events.Events():
			if !open {
				return nil, events.Err()
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// AbandonMirrors ends the copy whatever has become of it, also of one whose target
// does not answer, and removes all of it. The guest does not notice.
func (i *Instance) AbandonMirrors(ctx context.Context) error {
	return i.wrap("end the copy of disks", i.abandonMirrors(ctx))
}

func (i *Instance) abandonMirrors(ctx context.Context) error {
	i.CutMirrors(ctx)
	events := i.monitor.Subscribe(eventQueue, qmp.EventJobStatusChange)
	defer events.Close()
	jobs, err := i.mirrorJobs(ctx)
	if err != nil {
		return err
	}
	for disk := range jobs {
		// Refused of one that has ended meanwhile.
		_ = qmp.BlockJobCancel(ctx, i.monitor, qmp.BlockJobCancelArgs{Device: mirrorJob(disk), Force: new(true)})
	}
	ended, err := i.awaitMirrors(ctx, events)
	if err != nil {
		return err
	}
	for _, job := range ended {
		if err := qmp.JobDismiss(ctx, i.monitor, qmp.JobDismissArgs{ID: job.ID}); err != nil {
			return err
		}
	}
	return i.removeTargets(ctx)
}

// CutMirrors cuts the connections to the target: the copy fails, and a guest's writes
// that wait for it go on. It works while QEMU's monitor waits with them.
func (i *Instance) CutMirrors(ctx context.Context) {
	for _, disk := range i.localDisks() {
		node := mirrorNode(disk)
		// Refused of one that is not there.
		_ = qmp.Yank(ctx, i.monitor, qmp.YankArgs{Instances: []qmp.YankInstance{{Type: qmp.YankInstanceTypeBlockNode, NodeName: &node}}})
	}
}

// removeTargets removes the nodes of the target's exports.
func (i *Instance) removeTargets(ctx context.Context) error {
	nodes, err := qmp.QueryNamedBlockNodes(ctx, i.monitor, qmp.QueryNamedBlockNodesArgs{Flat: new(true)})
	if err != nil {
		return err
	}
	for _, disk := range i.localDisks() {
		there := func(node qmp.BlockNode) bool { return node.NodeName != nil && *node.NodeName == mirrorNode(disk) }
		if !slices.ContainsFunc(nodes, there) {
			continue
		}
		if err := qmp.BlockdevDel(ctx, i.monitor, qmp.BlockdevDelArgs{NodeName: mirrorNode(disk)}); err != nil {
			return err
		}
	}
	return nil
}
