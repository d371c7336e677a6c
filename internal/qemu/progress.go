package qemu

import (
	"context"
	"math"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

// Status is QEMU's state of a migration.
type Status string

// The states that matter here.
const (
	StatusNone          Status = "none" // there has been no migration
	StatusActive               = Status(qmp.MigrationStatusActive)
	StatusPreSwitchover        = Status(qmp.MigrationStatusPreSwitchover)
	StatusDevice               = Status(qmp.MigrationStatusDevice)
	StatusCompleted            = Status(qmp.MigrationStatusCompleted)
	StatusFailed               = Status(qmp.MigrationStatusFailed)
	StatusCancelled            = Status(qmp.MigrationStatusCancelled)
)

// UnderWay tells whether the migration can still end in either way.
func (s Status) UnderWay() bool {
	switch s {
	case StatusNone, StatusCompleted, StatusFailed, StatusCancelled:
		return false
	}
	return true
}

// statusOf gives the state; QEMU leaves it out before the first migration.
func statusOf(result qmp.QueryMigrateResult) Status {
	if result.Status == "" {
		return StatusNone
	}
	return Status(result.Status)
}

// Progress is how far a migration is. A target knows only Status and Error.
type Progress struct {
	Status       Status
	Pass         int // 1 is the first
	Transferred  fleet.Bytes
	Remaining    fleet.Bytes // of this pass, as QEMU knows it
	Total        fleet.Bytes // of guest memory
	PageSize     fleet.Bytes
	DirtyRate    fleet.BytesPerSecond // of the last second or pass; 0 in the first
	Bandwidth    fleet.BytesPerSecond // measured by QEMU over its last tenth of a second
	TotalTime    time.Duration
	SetupTime    time.Duration
	Downtime     time.Duration // QEMU's own; 0 until completed
	DowntimeNext time.Duration // that QEMU expects if it stopped now
	Throttle     int           // percent of its time that is taken from the guest
	Error        string
}

// Progress asks how far the migration is.
func (i *Instance) Progress(ctx context.Context) (Progress, error) {
	now, err := qmp.QueryMigrate(ctx, i.monitor)
	if err != nil {
		return Progress{}, i.wrap("ask for the migration's progress", err)
	}
	return progressOf(now), nil
}

func progressOf(now qmp.QueryMigrateResult) Progress {
	p := Progress{
		Status:       statusOf(now),
		TotalTime:    milliseconds(now.TotalTime),
		SetupTime:    milliseconds(now.SetupTime),
		Downtime:     milliseconds(now.Downtime),
		DowntimeNext: milliseconds(now.ExpectedDowntime),
	}
	if now.CPUThrottlePercentage != nil {
		p.Throttle = int(*now.CPUThrottlePercentage)
	}
	if now.ErrorDesc != nil {
		p.Error = *now.ErrorDesc
	}
	if ram := now.RAM; ram != nil {
		p.Pass = int(max(ram.DirtySyncCount, 0))
		p.Transferred, p.Remaining, p.Total = amount(ram.Transferred), amount(ram.Remaining), amount(ram.Total)
		p.PageSize = amount(ram.PageSize)
		p.DirtyRate = fleet.BytesPerSecond(amount(ram.DirtyPagesRate)) * fleet.BytesPerSecond(p.PageSize)
		p.Bandwidth = max(fleet.BytesPerSecond(ram.Mbps*1e6/8), 0)
	}
	return p
}

// amount of something of which QEMU can't have less than nothing.
func amount(n int64) fleet.Bytes { return fleet.Bytes(max(n, 0)) }

func milliseconds(ms *int64) time.Duration {
	if ms == nil {
		return 0
	}
	const most = int64(math.MaxInt64 / time.Millisecond)
	return time.Duration(min(max(*ms, 0), most)) * time.Millisecond
}
