package server

import (
	"context"
	"math"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/predict"
	"godwit.dev/godwit/internal/wire"
)

// hostMeter has hosts measure; whoever asks bounds the time.
type hostMeter struct{ *Server }

// guest has the host of a VM look at how its guest changes its memory. Conflict if it
// does not run; Unsupported if its host can't measure.
func (h hostMeter) guest(ctx context.Context, vm fleet.VM, span time.Duration, after time.Time) (predict.Curve, float64, time.Time, error) {
	if vm.Owner.Host == "" {
		return nil, 0, time.Time{}, notRunning("measure", vm)
	}
	host, err := h.agentOf(ctx, vm.Owner.Host)
	if err != nil {
		return nil, 0, time.Time{}, err
	}
	found, err := host.Measure.MeasureGuest(ctx, &godwitv1.MeasureGuestRequest{
		Vm: string(vm.Name), Epoch: uint64(vm.Owner.Epoch), Uid: string(vm.UID), SpanMs: span.Milliseconds(), After: timestamp(after),
	})
	if err != nil {
		return nil, 0, time.Time{}, err
	}
	zero := found.GetZeroShare()
	if !(zero >= 0 && zero <= 1) {
		zero = 0
	}
	return curveOf(found), zero, wire.TimeOf(found.GetBegan()), nil
}

// link has one host send to another as fast as it goes, for at most 200 ms and 64 MiB.
// Unavailable if one can't be reached, Unsupported if its agent can't measure.
func (h hostMeter) link(ctx context.Context, between way) (fleet.BytesPerSecond, error) {
	source, err := h.agentOf(ctx, between.from)
	if err != nil {
		return 0, err
	}
	target, err := h.tables.hosts.Get(ctx, string(between.to))
	if err != nil {
		return 0, err
	}
	found, err := source.Measure.MeasureLink(ctx, &godwitv1.MeasureLinkRequest{
		Host: target.Name, Address: target.Value.Address.String(), PeerPort: uint32(target.Value.PeerPort),
	})
	if err != nil {
		return 0, err
	}
	rate := found.GetBytesPerSecond()
	if !(rate > 0) || math.IsInf(rate, 0) {
		return 0, &fleet.Error{Code: fleet.Failed, Op: "measure link", Subject: "host " + string(between.from), Cause: "nothing came through"}
	}
	return fleet.BytesPerSecond(rate), nil
}

// maxPoints bounds a curve: no agent of ours measures at as many periods.
const maxPoints = 32

// curveOf reads what an agent has measured. What of the deviation is the sample's is as
// much in doubt as what is the guest's.
func curveOf(found *godwitv1.MeasureGuestResponse) predict.Curve {
	var points []predict.Point
	page := float64(found.GetPageBytes())
	for _, p := range found.GetCurve()[:min(maxPoints, len(found.GetCurve()))] {
		dirty, spread := page*p.GetPages(), page*math.Hypot(p.GetPagesDeviation(), p.GetPagesSamplingError())
		const most = float64(1 << 62)
		if !(dirty >= 0 && dirty < most && spread >= 0 && spread < most) {
			continue // no agent of ours says so
		}
		points = append(points, predict.Point{
			After: time.Duration(p.GetPeriodUs()) * time.Microsecond, Dirty: fleet.Bytes(dirty), Spread: fleet.Bytes(spread),
		})
	}
	return predict.NewCurve(points)
}
