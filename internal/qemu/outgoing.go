package qemu

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

// Outgoing says where a source sends to, and how.
type Outgoing struct {
	Address     netip.AddrPort
	CredsDir    string // ca-cert.pem, client-cert.pem, client-key.pem; "" for no TLS
	TLSHostname string // that the target's certificate must have
	// BandwidthMax bounds the copy; 0 does not.
	BandwidthMax fleet.BytesPerSecond
	// DowntimeLimit: QEMU ends the copy by itself when it estimates that what
	// is left takes no longer. At least 1 ms, or OnePass.
	DowntimeLimit time.Duration
	// SwitchoverBandwidth is what QEMU reckons with in that estimate, where it
	// can be told (QEMU 8.2); 0 is what it has measured. A tiny one keeps QEMU
	// from ending the copy while anything is left. One that gives less than a
	// byte within DowntimeLimit would be the same trap as a limit of 0, and is
	// raised to that.
	SwitchoverBandwidth fleet.BytesPerSecond
	// Hold keeps QEMU from ending the copy by itself while the guest runs,
	// whatever is left; after Stop it ends it. For QEMU 8.1 and later: see
	// Abilities.CanHold.
	Hold bool
	// ThrottleMax is the percent of its time that may be taken from a guest which changes
	// its memory faster than it is sent: first ThrottleInitial, then ThrottleStep more at
	// a time. 0: none.
	ThrottleInitial, ThrottleStep, ThrottleMax int
	// Connections is as the target's.
	Connections int
}

// OnePass, as a DowntimeLimit, lets QEMU go through the memory once. Then it
// stops the guest, and sends whatever the guest wrote meanwhile: with this
// threshold it never asks for the written pages while the guest runs.
const OnePass time.Duration = 0

// unlimited is far above any network, and far below where QEMU's sums overflow.
const unlimited fleet.BytesPerSecond = 1 << 50

// maxDowntimeLimit is QEMU's own (MAX_MIGRATE_DOWNTIME_SECONDS).
const maxDowntimeLimit = 2000 * time.Second

// SendTo begins a migration and returns when QEMU has accepted it: connecting
// and all that follows is told by events.
func (i *Instance) SendTo(ctx context.Context, out Outgoing) error {
	if out.DowntimeLimit != OnePass && out.DowntimeLimit < time.Millisecond || out.DowntimeLimit > maxDowntimeLimit {
		return &fleet.Error{Code: fleet.Invalid, Op: "migrate", Subject: "vm " + string(i.config.VM),
			Cause: fmt.Sprintf("a downtime limit of %v is neither 0 nor between 1ms and %v", out.DowntimeLimit, maxDowntimeLimit)}
	}
	i.loaded.Store(false)
	return i.wrap("migrate", i.sendTo(ctx, out))
}

func (i *Instance) sendTo(ctx context.Context, out Outgoing) error {
	parameters := qmp.MigrateSetParametersArgs{
		// Those of an earlier migration, as its target, are still set.
		TLSCreds: new(""), TLSHostname: new(""), TLSAuthz: new(""),
		DowntimeLimit: new(out.DowntimeLimit.Milliseconds()),
		MaxBandwidth:  new(bandwidth(out.BandwidthMax)),
	}
	if i.canSetSwitchover() {
		parameters.AvailSwitchoverBandwidth = new(switchover(out))
	}
	if out.CredsDir != "" {
		if err := i.replaceObject(ctx, credentials(out.CredsDir, "client")); err != nil {
			return err
		}
		parameters.TLSCreds, parameters.TLSHostname = new(credsObject), &out.TLSHostname
	}
	var more []qmp.MigrationCapabilityStatus
	if i.can.Schema.HasMigrationCapability(string(capabilityHold)) {
		more = append(more, qmp.MigrationCapabilityStatus{Capability: capabilityHold, State: out.Hold})
	}
	if i.can.Schema.HasMigrationCapability(string(qmp.MigrationCapabilityAutoConverge)) {
		more = append(more, qmp.MigrationCapabilityStatus{Capability: qmp.MigrationCapabilityAutoConverge, State: out.ThrottleMax > 0})
	}
	if out.ThrottleMax > 0 {
		parameters.CPUThrottleInitial, parameters.CPUThrottleIncrement = new(int64(out.ThrottleInitial)), new(int64(out.ThrottleStep))
		parameters.MaxCPUThrottle = new(int64(out.ThrottleMax))
	}
	if err := i.setUp(ctx, out.Connections, parameters, more...); err != nil {
		return err
	}
	return qmp.Migrate(ctx, i.monitor, qmp.MigrateArgs{URI: new("tcp:" + out.Address.String())})
}

// capabilityHold: a source that has it waits with the switchover until the
// target approves, unless the guest is stopped. A target approves only if it has
// the capability, too. It never gets it here, so the source holds.
const capabilityHold = qmp.MigrationCapabilitySwitchoverAck

func (i *Instance) canSetSwitchover() bool {
	return i.can.Schema.HasArgument("migrate-set-parameters", "avail-switchover-bandwidth")
}

// switchover gives a bandwidth with which QEMU's threshold, a whole number of
// bytes, is not 0.
func switchover(out Outgoing) int64 {
	if out.SwitchoverBandwidth <= 0 {
		return 0
	}
	const second = int64(time.Second / time.Millisecond)
	limit := out.DowntimeLimit.Milliseconds()
	return max(int64(min(out.SwitchoverBandwidth, unlimited)), (second+limit-1)/limit)
}

func bandwidth(limit fleet.BytesPerSecond) int64 {
	if limit <= 0 || limit > unlimited {
		limit = unlimited
	}
	return max(int64(limit), 1)
}

// SetBandwidth changes the bound of a running migration; 0 takes it away.
func (i *Instance) SetBandwidth(ctx context.Context, limit fleet.BytesPerSecond) error {
	return i.wrap("set bandwidth", qmp.MigrateSetParameters(ctx, i.monitor, qmp.MigrateSetParametersArgs{MaxBandwidth: new(bandwidth(limit))}))
}

// ContinueSwitch ends the pause of a source in pre-switchover: it gives up its
// disks and sends its devices. From here on nothing stops it but an end of the
// connection. The vCPUs must have come to rest: see the package comment.
func (i *Instance) ContinueSwitch(ctx context.Context) error {
	return i.wrap("continue the hand-over", qmp.MigrateContinue(ctx, i.monitor, qmp.MigrateContinueArgs{State: qmp.MigrationStatusPreSwitchover}))
}

// CancelMigration ends a source's migration and waits for its end. The VM then
// is as it was before the migration, or, if Stop had been called, not running:
// paused, or with QEMU 7.2 in pre-switchover also postmigrate.
// Conflict if the migration was completed before it could be cancelled; nil if
// it failed, or there was none.
func (i *Instance) CancelMigration(ctx context.Context) error {
	events := i.monitor.Subscribe(eventQueue, qmp.EventMigration)
	defer events.Close()
	if err := i.askCancel(ctx); err != nil {
		return i.wrap("cancel the migration", err)
	}
	for {
		now, err := qmp.QueryMigrate(ctx, i.monitor)
		if err != nil {
			return i.wrap("cancel the migration", err)
		}
		switch status := statusOf(now); {
		case status == StatusCompleted && now.RAM != nil:
			if err := i.awaitSettled(ctx); err != nil {
				return err
			}
			return &fleet.Error{Code: fleet.Conflict, Op: "cancel the migration", Subject: "vm " + string(i.config.VM),
				Cause: "it was already completed"}
		case !status.UnderWay():
			return i.awaitSettled(ctx)
		}
		select {
		case _, open := <-events.Events():
			if !open {
				return i.wrap("cancel the migration", events.Err())
			}
		case <-ctx.Done():
			return &fleet.Error{Code: fleet.Deadline, Op: "cancel the migration", Subject: "vm " + string(i.config.VM),
				Cause: "QEMU has not ended it", Err: context.Cause(ctx)}
		}
	}
}

// settleEvery is how often is asked for what QEMU tells by no event.
const settleEvery = time.Millisecond

// awaitSettled waits until a migration that has ended has let go of the guest: QEMU
// says that it has failed a moment before, and resumes no guest until then.
func (i *Instance) awaitSettled(ctx context.Context) error {
	ticker := time.NewTicker(settleEvery)
	defer ticker.Stop()
	for {
		status, err := qmp.QueryStatus(ctx, i.monitor)
		if err != nil || status.Status != qmp.RunStateFinishMigrate {
			return i.wrap("await the end of the migration", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return &fleet.Error{Code: fleet.Deadline, Op: "await the end of the migration", Subject: "vm " + string(i.config.VM),
				Cause: "QEMU still holds the guest", Err: context.Cause(ctx)}
		}
	}
}

// stuckAfter is how long QEMU has to take a cancel.
const stuckAfter = 300 * time.Millisecond

// askCancel asks for the end of a migration. While a source sends its devices, its
// main loop waits with it for a target that does not read, as behind a link that is
// cut; then it hears of the cancel only when its connections are shut.
func (i *Instance) askCancel(ctx context.Context) error {
	shut := make(chan struct{})
	stuck := time.AfterFunc(stuckAfter, func() {
		defer close(shut)
		_ = qmp.Yank(ctx, i.monitor, qmp.YankArgs{Instances: []qmp.YankInstance{{Type: qmp.YankInstanceTypeMigration}}}) // refused if there is none any more
	})
	err := qmp.MigrateCancel(ctx, i.monitor)
	if !stuck.Stop() {
		<-shut
	}
	return err
}
