package main

import (
	"context"
	"errors"
	"fmt"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/fleetlab"
)

const (
	defaultMigrations = 20
	fullFrame         = 1472 // bytes of UDP payload that fill an MTU of 1500
)

// clientCase is one kind of traffic, or of migration.
type clientCase struct {
	name    string
	ports   int
	traffic traffic
	cancel  bool
}

var clientCases = [...]clientCase{
	{name: "500 packets/s", traffic: traffic{Rate: 500}},
	{name: "5,000 packets/s", traffic: traffic{Rate: 5000}},
	{name: "full-size frames", traffic: traffic{Rate: 500, Size: fullFrame}},
	{name: "two ports", ports: 2, traffic: traffic{Rate: 500}},
	{name: "cancelled", traffic: traffic{Rate: 500}, cancel: true},
}

// flight is one migration of a case, as its client and its record have seen
// it. Times are milliseconds; a cancelled one has no blackout that can be
// measured, and its client's longest gap stands for it.
type flight struct {
	Case   string `json:"case"`
	State  string `json:"state"`
	Want   string `json:"want"` // the state it should have ended in
	Cause  string `json:"cause,omitempty"`
	Source string `json:"source"`
	Target string `json:"target"`
	seen
	TotalMs          float64            `json:"total_ms"`
	BlackoutMs       float64            `json:"blackout_ms"`
	OwnMs            float64            `json:"own_ms"`
	BlackoutPhasesMs map[string]float64 `json:"blackout_phases_ms"`
	phases           []string           // in their order
	Passes           int32              `json:"passes"`
	Bytes            uint64             `json:"bytes"`
	FramesDrained    int64              `json:"frames_drained"`
	FramesReturned   int64              `json:"frames_returned"`
	DrainError       string             `json:"drain_error,omitempty"` // why frames were lost
	ReturnError      string             `json:"return_error,omitempty"`
}

func (f flight) String() string {
	text := fmt.Sprintf("%-9s  lost %d, doubled %d of %5d, longest gap %6.1f ms", f.State, f.UDPLost, f.UDPDuplicated, f.UDPSent, f.LongestGapMs)
	if f.Want == "aborted" {
		return text + fmt.Sprintf(", %d frames returned", f.FramesReturned)
	}
	return text + fmt.Sprintf(", blackout %6.1f ms, own %5.2f ms", f.BlackoutMs, f.OwnMs)
}

// flown is a case that was measured.
type flown struct {
	Case     string   `json:"case"`
	TCPBytes uint64   `json:"tcp_bytes"` // of its one stream, which came back right
	TCPEnd   string   `json:"tcp_end"`   // why it is broken; empty if it is not
	flights  []flight // of all
}

// runClient measures all cases in one fleet.
func runClient(ctx context.Context, o options) (err error) {
	var f *fleetlab.Fleet
	err = o.step("starting a fleet of three hosts", func() error {
		f, err = fleetlab.Start(ctx, fleetlab.Config{Binary: o.godwit, Image: o.image, Networks: 2})
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var all []flown
	for _, c := range clientCases {
		var one flown
		one, err = o.fly(ctx, f, c)
		if len(one.flights) > 0 {
			all = append(all, one)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", c.name, err)
			break
		}
	}
	if len(all) == 0 {
		return err
	}
	report := summarizeClient(all)
	report.print(o.screen)
	return errors.Join(err, writeJSON(o.path("client"), report), broken(report.Targets))
}

// fly measures one case.
func (o options) fly(ctx context.Context, f *fleetlab.Fleet, c clientCase) (result flown, err error) {
	o.say("")
	var vm *fleetlab.Guest
	err = o.step(c.name+": booting a VM", func() (err error) {
		vm, err = f.Boot(ctx, fleetlab.GuestConfig{Name: "bench", Host: hosts[0], Memory: o.memory, Ports: c.ports, Load: o.load()})
		return err
	})
	if err != nil {
		return result, err
	}
	c.traffic.Straggle = longStraggle
	caller, err := dial(ctx, f.Client, vm.Addrs, c.traffic)
	if err != nil {
		return result, err
	}
	result.Case = c.name
	result.flights, err = o.flights(ctx, f, c, caller)
	stream := caller.hangUp(ctx)
	result.TCPBytes, result.TCPEnd = stream.Bytes, stream.Reason
	if err != nil {
		return result, err
	}
	return result, vm.Remove(ctx)
}

func (o options) flights(ctx context.Context, f *fleetlab.Fleet, c clientCase, caller *caller) (flights []flight, err error) {
	migrations, at := o.runs, 0
	if migrations == 0 {
		migrations = defaultMigrations
	}
	for i := range migrations {
		var one flight
		err := o.during(fmt.Sprintf("%3d/%d", i+1, migrations), func() (_ string, err error) {
			one, err = flyOnce(ctx, f, c, caller, i, hosts[1-at])
			return one.String(), err
		})
		if err != nil {
			return flights, fmt.Errorf("migration %d: %w", i+1, err)
		}
		if one.State == "succeeded" {
			at = 1 - at
		}
		flights = append(flights, one)
	}
	return flights, nil
}

// flyOnce migrates the VM under traffic.
func flyOnce(ctx context.Context, f *fleetlab.Fleet, c clientCase, caller *caller, number int, target string) (one flight, err error) {
	ctx, cancel := context.WithTimeout(ctx, moveWithin)
	defer cancel()
	request := &godwitv1.CreateMigrationRequest{Vm: "bench", Target: target}
	var m *godwitv1.Migration
	saw, err := caller.during(ctx, func() (err error) {
		if !c.cancel {
			m, err = f.Migrate(ctx, request, nil)
			return err
		}
		m, err = f.CancelSwitch(ctx, request, [...]string{fleetlab.SourceStopped, fleetlab.AllSent}[number%2])
		return err
	})
	if err != nil {
		return one, err
	}
	return describe(c, m, saw), nil
}

func describe(c clientCase, m *godwitv1.Migration, saw seen) flight {
	outcome := m.GetOutcome()
	one := flight{
		Case: c.name, State: m.GetState(), Want: "succeeded", Cause: m.GetCause(), Source: m.GetSource(), Target: m.GetTarget(),
		seen: saw, TotalMs: outcome.GetTotalMs(), BlackoutMs: outcome.GetBlackoutMs(), OwnMs: outcome.GetOwnMs(),
		Passes: outcome.GetPasses(), Bytes: outcome.GetBytes(),
		FramesDrained: outcome.GetFramesDrained(), FramesReturned: outcome.GetFramesReturned(),
		DrainError: outcome.GetDrainError(), ReturnError: outcome.GetReturnError(),
		BlackoutPhasesMs: map[string]float64{},
	}
	if c.cancel {
		one.Want = "aborted"
	}
	for _, phase := range outcome.GetPhases() {
		one.phases = append(one.phases, phase.GetName())
		one.BlackoutPhasesMs[phase.GetName()] = phase.GetMs()
	}
	return one
}
