package migration

import (
	"time"

	"godwit.dev/godwit/internal/fleet"
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
	// Of the copy: how long it had gone on, and what was sent and left of the pass.
	Elapsed   time.Duration `json:"elapsed,omitempty"`
	Sent      fleet.Bytes   `json:"sent,omitempty"`
	Remaining fleet.Bytes   `json:"remaining,omitempty"`
	predict.Forecast
}

func (f Forecast) position() predict.Position {
	return predict.Position{After: f.Elapsed, Sent: f.Sent, Remaining: f.Remaining}
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
	measured, seen := event.Measured, &m.Foreseen
	seen.Awaited = false
	if measured.Link.Rate > 0 || seen.Link.Rate == 0 {
		seen.Link, seen.LinkWhy = measured.Link, measured.LinkWhy
	}
	if again := !seen.Measured.IsZero(); again && (measured.Failure != "" || !measured.Began.After(seen.Measured)) {
		m.copyIfReady(event) // what was measured before predicts no failure alone
		return
	}
	seen.Guest, seen.Unmeasured, seen.Measured = measured.Guest, measured.Failure, measured.Began
	made := m.foresee(event, nil)
	if made && m.cancelledOn(event) {
		return
	}
	seen.Awaited = made && m.mayCancel() && m.lowLast()
	m.copyIfReady(event)
}

// foresee makes a forecast, and reports whether it could: without a link of known rate
// there is none.
func (m *Migration) foresee(event Event, within *predict.Position) bool {
	f, err := m.forecast(event, within)
	if err != nil {
		return false
	}
	p := event.Progress
	list := append(m.Foreseen.Forecasts, Forecast{At: event.At, Elapsed: p.Elapsed, Sent: p.Sent, Remaining: p.Remaining, Forecast: f})
	if len(list) > maxForecasts {
		list = append(list[:maxForecasts/2:maxForecasts/2], list[maxForecasts/2+1:]...)
	}
	m.Foreseen.Forecasts = list
	return true
}

// Foretold gives the pass as forecasts know it.
func (p Pass) Foretold() predict.Pass {
	return predict.Pass{Number: p.Number, After: p.Elapsed, Sent: p.Sent, Remaining: p.Remaining}
}

// forecast is made with the help that the policy allows and the source's QEMU has. It is chosen
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
		in.Passes = append(in.Passes, pass.Foretold())
	}
	return in
}

// evaluate makes a forecast of a copy that is under way, and cancels the migration that is
// predicted to fail. It does so when a pass is over and now and then within one: each has
// something to say that the one before did not know.
func (m *Migration) evaluate(event Event) {
	p := event.Progress
	if m.State != Copying || p.Elapsed == 0 || len(m.Passes) == 0 || p.Pass != m.Passes[len(m.Passes)-1].Number {
		return
	}
	var within *predict.Position
	switch {
	case p.PassBegins && len(m.Passes) == 1:
		return
	case !p.PassBegins:
		if within = m.within(p); within == nil {
			return
		}
	}
	if !m.foresee(event, within) || m.endsNow(p) {
		return
	}
	m.cancelledOn(event)
}

// endsNow: the source's agent may be about to stop the guest.
func (m *Migration) endsNow(p Progress) bool {
	return p.Pass > 1 && float64(p.Remaining) <= float64(p.Bandwidth)*m.Policy.BlackoutMax.Seconds()
}

// within gives the place in the pass, with the rates of the link since its beginning; nil
// if the newest of them is not long enough yet.
func (m *Migration) within(p Progress) *predict.Position {
	begun := m.Passes[len(m.Passes)-1]
	at := begun.Foretold().At()
	now := &predict.Position{After: p.Elapsed, Sent: p.Sent, Remaining: p.Remaining}
	var places []predict.Position
	for _, f := range m.Foreseen.Forecasts {
		if f.Elapsed > begun.Elapsed {
			places = append(places, f.position())
		}
	}
	for _, to := range append(places, *now) {
		if rate, telling := predict.RateBetween(at, to); telling {
			now.Rates = append(now.Rates, rate)
		}
		if to.After == now.After && to.After-at.After < max(evaluateEvery, m.Policy.CopyMax/evaluateShare) {
			return nil
		}
		at = to
	}
	return now
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
	case len(m.Passes) == 0 || m.Passes[0].Elapsed == 0:
		return predict.Outcome{}, false
	case m.Foreseen.Exhausted && m.State == Aborted:
		return predict.Outcome{Total: m.Policy.CopyMax, Bytes: out.Bytes, Passes: out.Passes}, true
	case m.State == Succeeded && m.SourceMarks != nil && out.Blackout > 0:
		return predict.Outcome{
			Ended: true, Total: m.stoppedAfter() + out.Blackout, Blackout: out.Blackout, Bytes: out.Bytes, Passes: out.Passes,
		}, true
	}
	return predict.Outcome{}, false
}

// stoppedAfter gives how long the copy had gone on when the guest stopped. By the source's
// clock is only what came after the last pass began.
func (m *Migration) stoppedAfter() time.Duration {
	last := m.Passes[len(m.Passes)-1]
	return last.Elapsed + max(0, m.SourceMarks.Stopped.Sub(last.At))
}
