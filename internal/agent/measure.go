package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pagesample"
	"godwit.dev/godwit/internal/qemu"
)

const (
	// measureShare bounds what measuring a guest takes of one processor, on average over
	// the time from its begin to the begin of the next one. A sample of 2048 pages took
	// 64 to 77 ms over 4 s on two busy cores, so that 2.4 to 3.7 s lie between.
	measureShare = 0.01
	// measurePause is at most between two: the sample is made so small.
	measurePause = 30 * time.Second
	// measureLate is how much longer than its span one may take.
	measureLate = 15 * time.Second
	// measuresMax is how many guests of a host are measured at the same time.
	measuresMax = 2
)

// How a guest was measured.
const (
	measuredBySample = "sample"
	measuredByQEMU   = "qemu"
)

// measureService measures for servers what a migration would find.
type measureService struct{ agent *Agent }

func (s measureService) MeasureGuest(ctx context.Context, request *godwitv1.MeasureGuestRequest) (*godwitv1.MeasureGuestResponse, error) {
	m, err := s.agent.askedFor(ctx, "measure guest", request.GetVm(), request.GetEpoch(), request.GetUid())
	if err != nil {
		return nil, err
	}
	instance, err := m.measurable()
	if err != nil {
		return nil, err
	}
	span := time.Duration(request.GetSpanMs()) * time.Millisecond
	return m.measured.share(ctx, request.GetAfter().AsTime(), func(ctx context.Context) (*godwitv1.MeasureGuestResponse, error) {
		return m.measureGuest(ctx, instance, pagesample.SpanOf(span))
	})
}

// measurable gives the instance, unless it is in a migration.
func (m *machine) measurable() (*qemu.Instance, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	refusal := &fleet.Error{Code: fleet.Conflict, Op: "measure guest", Subject: "vm " + string(m.key.vm)}
	switch {
	case m.record.Role != alone || m.copying != nil:
		refusal.Cause = "a migration has it"
	case m.instance == nil:
		refusal.Code, refusal.Cause = fleet.Unavailable, fmt.Sprintf("%s does not hold its instance yet", m.agent.config.Name)
	case m.instance.Ended():
		refusal.Cause = "its instance has ended"
	default:
		return m.instance, nil
	}
	return nil, refusal
}

// measured shares what is measured of one guest.
type measured struct {
	mu   sync.Mutex
	last *measurement // the newest, or one that is under way
}

type measurement struct {
	done   chan struct{}
	answer *godwitv1.MeasureGuestResponse
	err    error
	until  time.Time // when the next one may begin
}

// old: another one may begin.
func (m *measurement) old() bool {
	select {
	case <-m.done:
		return m.err != nil || !time.Now().Before(m.until)
	default:
		return false
	}
}

// share gives what is being measured, or was not long ago, or else measures. What did not
// begin after a time is no answer: the next one may begin when it has paid for itself.
// Who goes away does not end it for the others.
func (s *measured) share(ctx context.Context, after time.Time, measure func(context.Context) (*godwitv1.MeasureGuestResponse, error)) (*godwitv1.MeasureGuestResponse, error) {
	for {
		one := s.newest(ctx, measure)
		select {
		case <-one.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if one.err != nil || one.answer.GetBegan().AsTime().After(after) {
			return one.answer, one.err
		}
		paid := time.NewTimer(time.Until(one.until))
		select {
		case <-paid.C:
		case <-ctx.Done():
			paid.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// newest gives the newest measurement, or begins one, if it is old.
func (s *measured) newest(ctx context.Context, measure func(context.Context) (*godwitv1.MeasureGuestResponse, error)) *measurement {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || s.last.old() {
		s.last = &measurement{done: make(chan struct{})}
		go s.last.run(context.WithoutCancel(ctx), measure)
	}
	return s.last
}

func (m *measurement) run(ctx context.Context, measure func(context.Context) (*godwitv1.MeasureGuestResponse, error)) {
	defer close(m.done)
	began := time.Now()
	if m.answer, m.err = measure(ctx); m.err == nil {
		m.until = began.Add(pauseAfter(m.answer))
	}
}

// pauseAfter is from the begin of a measurement to that of the next one. What it costs
// QEMU to take samples nobody tells.
func pauseAfter(answer *godwitv1.MeasureGuestResponse) time.Duration {
	if answer.GetMethod() == measuredByQEMU {
		return time.Duration(answer.GetSpanUs())*time.Microsecond + measurePause
	}
	return time.Duration(float64(answer.GetCpuUs())/measureShare) * time.Microsecond
}

// measureGuest measures once, as long as the guest runs here.
func (m *machine) measureGuest(ctx context.Context, instance *qemu.Instance, span time.Duration) (*godwitv1.MeasureGuestResponse, error) {
	ctx, stop := context.WithTimeoutCause(ctx, span+measureLate, m.unmeasured(fleet.Deadline, "it took too long"))
	defer stop()
	select {
	case m.agent.measures <- struct{}{}:
		defer func() { <-m.agent.measures }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	events := instance.Subscribe()
	var watch sync.WaitGroup
	watch.Go(func() { cancel(m.disturbed(events)) })
	defer watch.Wait()
	defer events.Close()
	state, err := instance.Status(ctx)
	if err == nil && !state.Running() {
		return nil, m.unmeasured(fleet.Conflict, "its guest does not run: "+string(state))
	}
	var answer *godwitv1.MeasureGuestResponse
	if err == nil {
		answer, err = m.sampleGuest(ctx, instance, span)
	}
	if fleet.CodeOf(err) == fleet.Unsupported {
		m.agent.log.Warn("an instance's memory can't be read, and QEMU is to measure it", "vm", m.key.vm, "error", err)
		answer, err = m.askDirtyRates(ctx, instance, span)
	}
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	if err != nil && endedWith(instance, err) {
		return nil, m.unmeasured(fleet.Conflict, "its instance ended meanwhile")
	}
	return answer, err
}

func (m *machine) unmeasured(code fleet.Code, cause string) error {
	return &fleet.Error{Code: code, Op: "measure guest", Subject: "vm " + string(m.key.vm), Cause: cause}
}

// disturbed waits until the guest stands still or a copy of it begins, and says so: the
// measuring ends then, and takes no time of a migration.
func (m *machine) disturbed(events *qemu.Subscription) error {
	for event := range events.Events() {
		switch event.Kind {
		case qemu.Stopped:
			return m.unmeasured(fleet.Conflict, "its guest was stopped meanwhile")
		case qemu.MigrationChanged:
			return m.unmeasured(fleet.Conflict, "a migration has it since")
		}
	}
	return m.unmeasured(fleet.Conflict, "its instance ended meanwhile")
}

// sampleGuest looks at the guest's memory itself.
func (m *machine) sampleGuest(ctx context.Context, instance *qemu.Instance, span time.Duration) (*godwitv1.MeasureGuestResponse, error) {
	at, err := instance.MemoryAddress(ctx)
	if err != nil {
		return nil, err
	}
	memory, err := pagesample.Open(instance.PID(), at, uint64(instance.Config().Memory))
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	if instance.Ended() { // else it is the instance's process that was opened
		return nil, m.unmeasured(fleet.Conflict, "its instance has ended")
	}
	most := time.Duration(measureShare * float64(span+measurePause))
	r, err := pagesample.Measure(ctx, memory, pagesample.Plan{Span: span, CPUMax: most})
	if err != nil {
		return nil, err
	}
	answer := &godwitv1.MeasureGuestResponse{
		Method: measuredBySample, Began: timestamppb.New(r.Began), SpanUs: r.Span.Microseconds(),
		PageBytes: uint64(r.PageBytes), Pages: r.Pages, SampledPages: uint32(r.Sampled),
		ZeroShare: r.Zero, UntouchedShare: r.Untouched, SwappedShare: r.Swapped, CompressedShare: r.Compressed, CpuUs: r.CPU.Microseconds(),
	}
	for _, p := range r.Curve {
		answer.Curve = append(answer.Curve, &godwitv1.DirtyPoint{
			PeriodUs: p.Period.Microseconds(), Pages: p.Pages, PagesDeviation: p.StdDev, Windows: uint32(p.Windows), PagesSamplingError: p.SamplingError,
		})
	}
	return answer, nil
}

// askDirtyRates has QEMU measure, which does for one period after the other.
func (m *machine) askDirtyRates(ctx context.Context, instance *qemu.Instance, span time.Duration) (*godwitv1.MeasureGuestResponse, error) {
	began := time.Now()
	rates, err := instance.DirtyRates(ctx, span)
	if err != nil {
		return nil, err
	}
	const page = 4 * fleet.KiB // QEMU's own for this
	answer := &godwitv1.MeasureGuestResponse{
		Method: measuredByQEMU, Began: timestamppb.New(began), SpanUs: time.Since(began).Microseconds(),
		PageBytes: uint64(page), Pages: uint64(instance.Config().Memory / page),
	}
	for _, one := range rates {
		pages := float64(one.Rate) * one.Period.Seconds() / float64(page)
		answer.Curve = append(answer.Curve, &godwitv1.DirtyPoint{PeriodUs: one.Period.Microseconds(), Pages: pages, Windows: 1})
	}
	return answer, nil
}
