package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/predict"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

const (
	// measureSpan is how long a guest is looked at before a migration, beside the
	// preparation of its target.
	measureSpan = 2 * time.Second
	// measureWithin bounds that, with the answers of both hosts, of which one may have other
	// guests to measure before. A second measurement begins when the first has paid for
	// itself, which takes longer the larger the guest is.
	measureWithin      = measureSpan + 10*time.Second
	measureAgainWithin = 45 * time.Second
)

// meter measures guests and links.
type meter interface {
	// guest gives how a VM changes its memory, the share of it that is zero, and when the
	// measurement began, by the host's clock. It is another one than that which began then.
	guest(ctx context.Context, vm fleet.VM, span time.Duration, after time.Time) (predict.Curve, float64, time.Time, error)
	// link gives how fast one host reaches another.
	link(ctx context.Context, between way) (fleet.BytesPerSecond, error)
}

// foreseer finds out what forecasts are made of.
type foreseer struct {
	meter   meter
	tables  tables
	mirror  *mirror
	lessons *lessons
}

// prepare makes a planned migration wait for what it is to be foreseen by. The copy of an
// emulated guest whose QEMU can't be held has one pass, and ends whatever the guest does.
func (f *foreseer) prepare(m *migration.Migration, vm fleet.VM) {
	if m.Unheld && vm.Accel == "tcg" {
		return
	}
	m.Foreseen.Awaited = true
	m.Foreseen.Guest = guestOf(vm.Spec)
	m.Foreseen.Calibration = f.lessons.calibration()
}

func guestOf(spec fleet.VMSpec) predict.Guest {
	return predict.Guest{Memory: spec.Memory, Disks: spec.Copied() - spec.Memory}
}

// measure is what the reconciler asks for a migration.
func (f *foreseer) measure(ctx context.Context, m migration.Migration) migration.Measured {
	again := !m.Foreseen.Measured.IsZero()
	within := measureWithin
	if again {
		within = measureAgainWithin
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	measured := migration.Measured{Guest: m.Foreseen.Guest}
	vm, err := f.tables.vms.Get(ctx, string(m.VM))
	if err != nil {
		measured.Failure = err.Error()
		return measured
	}
	var both sync.WaitGroup
	both.Go(func() { measured.Link, measured.LinkWhy = f.link(ctx, way{m.Source, m.Target}, m.ID, again) })
	curve, zero, began, err := f.meter.guest(ctx, vm.Value, measureSpan, m.Foreseen.Measured)
	both.Wait()
	if err != nil {
		measured.Failure = err.Error()
		return measured
	}
	measured.Guest.Curve, measured.Guest.Zero, measured.Began = curve, zero, began
	return measured
}

// link gives what a way leaves for one more migration: what was achieved on it lately or,
// where nothing is known, what a probe shows, shared with those that copy now. Where a
// migration is to be given up for it, what is known is doubted, and a better probe counts.
func (f *foreseer) link(ctx context.Context, between way, self fleet.MigrationID, doubted bool) (predict.Link, string) {
	link, why := f.lessons.link(between, time.Now())
	if link.Rate == 0 || doubted {
		probed, err := f.meter.link(ctx, between)
		if err != nil && link.Rate == 0 {
			return predict.Link{}, fmt.Sprintf("nothing is known of the way: %v", err)
		}
		if err == nil && probed > link.Rate {
			link, why = predict.Link{Rate: probed, Spread: probeSpread}, "a probe had it"
		}
	}
	if others := f.mirror.copying(between, self); others > 0 {
		link.Rate /= fleet.BytesPerSecond(others + 1)
		why += fmt.Sprintf("; shared with %s", counted(others, "other", "others"))
	}
	return link, why
}

// probeSpread is the standard deviation of the logarithm of what a migration has over
// what a probe had.
const probeSpread = 0.2

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// copying is how many other migrations use one end of a way now.
func (m *mirror) copying(between way, self fleet.MigrationID) (n int) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for id, one := range m.migrations {
		if id != self && one.state == migration.Copying && (one.source == between.from || one.target == between.to) {
			n++
		}
	}
	return n
}

// Forecast does what Create does up to the forecast, and no more.
func (s *migrationService) Forecast(ctx context.Context, request *godwitv1.ForecastMigrationRequest) (*godwitv1.ForecastMigrationResponse, error) {
	plan, err := s.runs.plan(ctx, migrationRequest{
		vm: fleet.VMName(request.GetVm()), target: fleet.HostName(request.GetTarget()), reason: "forecast",
		policy: func(copied fleet.Bytes) (migration.Policy, error) { return policyOf(request.GetPolicy(), copied) },
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, measureWithin)
	defer cancel()
	m := plan.migration
	event := migration.Event{Kind: migration.GuestMeasured, At: time.Now(), From: "server", Measured: s.runs.foreseer.measure(ctx, m)}
	m, _, _ = migration.Step(m, event)
	message := migrationMessage(store.Entry[migration.Migration]{Value: m})
	return &godwitv1.ForecastMigrationResponse{
		Source: message.GetSource(), Target: message.GetTarget(), Choice: message.GetChoice(), Refused: message.GetRefused(),
		Foreseen: message.GetForeseen(), Cancelled: m.Foreseen.Awaited, Limits: message.GetLimits(),
	}, nil
}

// addForeseen shows what was expected.
func addForeseen(message *godwitv1.Migration, m migration.Migration) {
	seen := m.Foreseen
	shown := &godwitv1.Foreseen{
		LinkBytesPerSecond: float64(seen.Link.Rate), LinkWhy: seen.LinkWhy, Curve: wire.EncodeCurve(seen.Guest.Curve),
		ZeroShare: seen.Guest.Zero, Unmeasured: seen.Unmeasured, FailurePredicted: seen.Failed,
	}
	for _, f := range seen.Forecasts {
		shown.Forecasts = append(shown.Forecasts, wire.EncodeForecast(f.At, f.Forecast))
	}
	if t := seen.Throttle; t.Max > 0 {
		shown.Throttle = &godwitv1.Throttle{Initial: int32(t.Initial), Step: int32(t.Step), Max: int32(t.Max), Why: t.Why}
	}
	if graded := m.Graded(); len(graded) > 0 {
		shown.Outcome = wire.EncodeForeseenOutcome(graded[0].Outcome)
	}
	if len(shown.Forecasts) > 0 || shown.Unmeasured != "" || shown.LinkWhy != "" {
		message.Foreseen = shown
	}
}
