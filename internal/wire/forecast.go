package wire

import (
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/predict"
)

// EncodeForecast gives the message of a forecast that was made at a time.
func EncodeForecast(at time.Time, f predict.Forecast) *godwitv1.Forecast {
	return &godwitv1.Forecast{
		At: encodeTime(at), Pass: int32(f.Pass), Known: f.Known, Probability: f.Probability, Reason: f.Reason,
		TotalMs: encodeSpan(f.Total, time.Millisecond), BlackoutMs: encodeSpan(f.Blackout, time.Millisecond),
		Bytes: encodeSpan(f.Bytes, 1), Passes: encodeSpan(f.Passes, 1), SettlesMs: inMs(f.Settles),
	}
}

// DecodeForecast is its inverse, without the time.
func DecodeForecast(message *godwitv1.Forecast) predict.Forecast {
	return predict.Forecast{
		Pass: int(message.GetPass()), Known: message.GetKnown(), Probability: message.GetProbability(), Reason: message.GetReason(),
		Estimate: predict.Estimate{
			Total: decodeSpan(message.GetTotalMs(), time.Millisecond), Blackout: decodeSpan(message.GetBlackoutMs(), time.Millisecond),
			Bytes: decodeSpan[fleet.Bytes](message.GetBytes(), 1),
		},
		Passes: decodeSpan(message.GetPasses(), 1), Settles: fromMs(message.GetSettlesMs()),
	}
}

// EncodeForeseenOutcome gives the message of how a migration came out.
func EncodeForeseenOutcome(o predict.Outcome) *godwitv1.ForeseenOutcome {
	return &godwitv1.ForeseenOutcome{
		Ended: o.Ended, TotalMs: inMs(o.Total), BlackoutMs: inMs(o.Blackout), Bytes: uint64(o.Bytes), Passes: int32(o.Passes),
	}
}

// DecodeForeseenOutcome is its inverse.
func DecodeForeseenOutcome(message *godwitv1.ForeseenOutcome) predict.Outcome {
	return predict.Outcome{
		Ended: message.GetEnded(), Total: fromMs(message.GetTotalMs()), Blackout: fromMs(message.GetBlackoutMs()),
		Bytes: fleet.Bytes(message.GetBytes()), Passes: int(message.GetPasses()),
	}
}

// EncodeCurve gives the points of a curve.
func EncodeCurve(curve predict.Curve) (points []*godwitv1.DirtyCurvePoint) {
	for _, p := range curve {
		points = append(points, &godwitv1.DirtyCurvePoint{PeriodMs: inMs(p.After), Bytes: uint64(p.Dirty), SpreadBytes: uint64(p.Spread)})
	}
	return points
}

func encodeSpan[T predict.Number](s predict.Span[T], unit T) *godwitv1.Interval {
	in := func(value T) float64 { return float64(value) / float64(unit) }
	return &godwitv1.Interval{Low: in(s.Low), Expected: in(s.Expected), High: in(s.High)}
}

func decodeSpan[T predict.Number](i *godwitv1.Interval, unit T) predict.Span[T] {
	of := func(value float64) T { return T(believed(value * float64(unit))) }
	return predict.Span[T]{Low: of(i.GetLow()), Expected: of(i.GetExpected()), High: of(i.GetHigh())}
}

// believed is what of a number that came over the wire is taken: it fits everywhere.
func believed(value float64) float64 {
	if !(value > 0) { // nor is it a number
		return 0
	}
	return min(value, 1<<62)
}

func inMs(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func fromMs(ms float64) time.Duration {
	return time.Duration(believed(ms * float64(time.Millisecond)))
}
