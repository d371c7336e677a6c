package migration

import (
	"time"

	"godwit.dev/godwit/internal/predict"
)

// Foreseen is a migration's forecasts, and what they are made of.
type Foreseen struct {
	// Awaited: the copy begins only when the guest was measured, or could not be.
	Awaited bool          `json:"awaited,omitempty"`
	Guest   predict.Guest `json:"guest"`
	// Measured is when the newest measurement of the guest began, by its host's clock.
	Measured time.Time    `json:"measured,omitzero"`
	Link     predict.Link `json:"link"`
	LinkWhy  string       `json:"linkWhy,omitempty"` // the link is taken to have that rate
	// Unmeasured is why the guest could not be measured; "" if it was.
	Unmeasured  string              `json:"unmeasured,omitempty"`
	Calibration predict.Calibration `json:"calibration,omitzero"`
	Forecasts   []Forecast          `json:"forecasts,omitempty"`
	// Throttle is how the guest is slowed, if it must be.
	Throttle predict.Throttle `json:"throttle,omitzero"`
	// Failed: a failure was predicted, and the policy has it cancelled for that.
	Failed bool `json:"failed,omitempty"`
	// Exhausted: it was given up at the end of the time for the copy.
	Exhausted bool `json:"exhausted,omitempty"`
}

// Forecast is one that was made during the migration, or before its start.
type Forecast struct {
	At time.Time `json:"at"` // by the server's clock
	predict.Forecast
}

// Measured is what is known of guest and link before the copy.
type Measured struct {
	Guest   predict.Guest
	Began   time.Time // by the clock of the guest's host
	Link    predict.Link
	LinkWhy string
	Failure string // why the guest was not measured; "" if it was
}

const (
	// maxForecasts bounds a record; those in the middle are left out.
	maxForecasts = 40
	// evaluateEvery is the least time between two forecasts within a pass, and
	// evaluateShare the same as a share of the time for the copy.
	evaluateEvery = 2 * time.Second
	evaluateShare = 50
)

// guestMeasured: what is known before the start. A forecast below the threshold is made
// once more, with another measurement, before it counts.
func guestMeasured(m *Migration, event Event) {
	measured := event.Measured
	m.Foreseen.Awaited = false
	if measured.Failure != "" && len(m.Foreseen.Guest.Curve) > 0 {
		m.copyIfReady(event) // what was measured before alone predicts no failure
		return
	}
	m.Foreseen.Guest, m.Foreseen.Link, m.Foreseen.LinkWhy = measured.Guest, measured.Link, measured.LinkWhy
	m.Foreseen.Unmeasured, m.Foreseen.Measured = measured.Failure, measured.Began
	m.foresee(event, nil)
	if m.cancelledOn(event) {
		return
	}
	m.Foreseen.Awaited = m.mayCancel() && m.lowLast()
	m.copyIfReady(event)
}

// foresee makes a forecast. Without a link of known rate there is none.
func (m *Migration) foresee(event Event, within *predict.Position) {
	f, err := m.forecast(event, within)
	if err != nil {
		return
	}
	list := append(m.Foreseen.Forecasts, Forecast{At: event.At, Forecast: f})
	if len(list) > maxForecasts {
		list = append(list[:maxForecasts/2:maxForecasts/2], list[maxForecasts/2+1:]...)
	}
	m.Foreseen.Forecasts = list
}

// forecast is made with the help that the policy allows and both QEMUs have. It is chosen
// before the copy; in it the guest may be slowed further, up to the limit.
func (m *Migration) forecast(event Event, within *predict.Position) (predict.Forecast, error) {
	in, most := m.inputs(within), m.Policy.ThrottleMax
	if !m.SourceQEMU.Capabilities.Can(throttles) {
		most = 0
	}
	if len(in.Passes) == 0 {
		throttle, f, err := predict.Help(in, most)
		m.Foreseen.Throttle = throttle
		return f, err
	}
	if chosen := m.Foreseen.Throttle; chosen.Max > 0 {
		now := min(event.Progress.Throttle, chosen.Max)
		in.Throttle = 1 - float64(100-chosen.Max)/float64(100-now)
	}
	return predict.Make(in)
}

// throttles is the capability that slows a guest.
const throttles = "auto-converge"

func (m *Migration) inputs(within *predict.Position) predict.Inputs {
	link := m.Foreseen.Link
	if most := m.Policy.BandwidthMax; most > 0 && (link.Rate > most || link.Rate == 0) {
		link.Last, link.Rate = link.Rate, most
	}
	in := predict.Inputs{
		Guest: m.Foreseen.Guest, Link: link, Calibration: m.Foreseen.Calibration, Within: within,
		Limits: predict.Limits{Blackout: m.Policy.BlackoutMax, Copy: m.Policy.CopyMax},
	}
	for _, pass := range m.Passes {
		in.Passes = append(in.Passes, predict.Pass{
			Number: pass.Number, After: m.sinceCopy(pass.At), Sent: pass.Sent, Remaining: pass.Remaining,
		})
	}
	return in
}

// sinceCopy gives how long after the start of the copy something was by the source's
// clock: the first pass is the one instant of which both clocks are known.
func (m *Migration) sinceCopy(at time.Time) time.Duration {
	first := m.Passes[0]
	return max(0, first.Heard.Sub(m.CopyBegan)) + at.Sub(first.At)
}

// evaluate makes a forecast of a copy that is under way, when a pass begins and now and
// then within one, and cancels the migration that is predicted to fail.
func (m *Migration) evaluate(event Event) {
	p := event.Progress
	if m.State != Copying || len(m.Passes) == 0 || p.Pass != m.Passes[len(m.Passes)-1].Number {
		return
	}
	var within *predict.Position
	if !p.PassBegins {
		if !m.dueAgain(event.At) {
			return
		}
		within = &predict.Position{After: m.sinceCopy(p.At), Sent: p.Sent, Remaining: p.Remaining, Rate: p.Bandwidth}
	}
	m.foresee(event, within)
	m.cancelledOn(event)
}

// dueAgain: the newest forecast is old enough for another within the pass.
func (m *Migration) dueAgain(now time.Time) bool {
	newest := m.Passes[len(m.Passes)-1].Heard
	if n := len(m.Foreseen.Forecasts); n > 0 {
		newest = later(newest, m.Foreseen.Forecasts[n-1].At)
	}
	return now.Sub(newest) >= max(evaluateEvery, m.Policy.CopyMax/evaluateShare)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// mayCancel: the policy has migrations cancelled that are predicted to fail.
func (m *Migration) mayCancel() bool { return m.Policy.Prediction.OnFailure == predict.Cancel }

func (m *Migration) lowLast() bool {
	n := len(m.Foreseen.Forecasts)
	return n > 0 && m.Policy.Prediction.Threshold.Low(m.Foreseen.Forecasts[n-1].Forecast)
}

// cancelledOn ends the migration if a failure is predicted and the policy says so.
func (m *Migration) cancelledOn(event Event) bool {
	list := m.Foreseen.Forecasts
	forecasts := make([]predict.Forecast, len(list))
	for i, f := range list {
		forecasts[i] = f.Forecast
	}
	if !m.mayCancel() || !m.Policy.Prediction.Threshold.Met(forecasts) {
		return false
	}
	m.Foreseen.Failed = true
	if m.State == Planned {
		abortPlan(m, event)
	} else {
		rollBack(m, event)
	}
	return true
}

// predictedCause says why a migration is cancelled that is predicted to fail.
func (m *Migration) predictedCause() string {
	list := m.Foreseen.Forecasts
	return m.Policy.Prediction.Threshold.Cause(list[len(list)-1].Forecast)
}

// Graded gives the forecasts with what became of the migration; none if its end says
// nothing of them, since a fault, a person or the prediction itself brought it about.
func (m *Migration) Graded() []predict.Graded {
	outcome, told := m.foreseenOutcome()
	if !told {
		return nil
	}
	var list []predict.Graded
	for _, f := range m.Foreseen.Forecasts {
		list = append(list, predict.Graded{Forecast: f.Forecast, Outcome: outcome})
	}
	return list
}

func (m *Migration) foreseenOutcome() (predict.Outcome, bool) {
	out := m.Outcome()
	switch {
	case len(m.Passes) == 0:
		return predict.Outcome{}, false
	case m.Foreseen.Exhausted && m.State == Aborted:
		return predict.Outcome{Total: m.Policy.CopyMax, Bytes: out.Bytes, Passes: out.Passes}, true
	case m.State == Succeeded && m.SourceMarks != nil && out.Blackout > 0:
		return predict.Outcome{
			Ended: true, Total: m.sinceCopy(m.SourceMarks.Stopped) + out.Blackout, Blackout: out.Blackout, Bytes: out.Bytes, Passes: out.Passes,
		}, true
	}
	return predict.Outcome{}, false
}
