package wire_test

import (
	"math"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/predict"
	"godwit.dev/godwit/internal/wire"
)

func TestForecastComesBack(t *testing.T) {
	f := predict.Forecast{
		Pass: 3, Known: true, Probability: 0.75, Reason: "because", Settles: 20 * time.Millisecond,
		Estimate: predict.Estimate{
			Total:    predict.Span[time.Duration]{Low: time.Second, Expected: 2 * time.Second, High: time.Hour},
			Blackout: predict.Span[time.Duration]{Low: 1500 * time.Microsecond, Expected: 20 * time.Millisecond, High: time.Second},
			Bytes:    predict.Span[fleet.Bytes]{Low: 1, Expected: fleet.GiB, High: 4 * fleet.TiB},
		},
		Passes: predict.Span[int]{Low: 2, Expected: 3, High: 200},
	}
	if got := wire.DecodeForecast(wire.EncodeForecast(time.Unix(1, 0), f)); got != f {
		t.Errorf("%+v came back as %+v", f, got)
	}
	o := predict.Outcome{Ended: true, Total: time.Minute, Blackout: 12500 * time.Microsecond, Bytes: fleet.GiB, Passes: 4}
	if got := wire.DecodeForeseenOutcome(wire.EncodeForeseenOutcome(o)); got != o {
		t.Errorf("%+v came back as %+v", o, got)
	}
}

func TestForecastOfNoSense(t *testing.T) {
	bad := &godwitv1.Interval{Low: math.Inf(-1), Expected: math.Inf(1), High: math.MaxFloat64}
	got := wire.DecodeForecast(&godwitv1.Forecast{TotalMs: bad, Bytes: bad, Passes: bad})
	if got.Total.Low != 0 || got.Total.High <= 0 || got.Passes.High <= 0 {
		t.Errorf("%+v", got)
	}
}
