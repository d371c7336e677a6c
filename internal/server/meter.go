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

// hostMeter has hosts measure.
type hostMeter struct{ *Server }

func (h hostMeter) guest(ctx context.Context, vm fleet.VM, span time.Duration, after time.Time) (predict.Curve, float64, time.Time, error) {
	found, err := h.measureGuest(ctx, vm, span, after)
	if err != nil {
		return nil, 0, time.Time{}, err
	}
	zero := found.GetZeroShare()
	if !(zero >= 0 && zero <= 1) {
		zero = 0
	}
	return curveOf(found), zero, wire.TimeOf(found.GetBegan()), nil
}

func (h hostMeter) link(ctx context.Context, between way) (fleet.BytesPerSecond, error) {
	found, err := h.MeasureLink(ctx, between.from, between.to)
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
