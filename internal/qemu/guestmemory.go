package qemu

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

// Places in the guest where every machine type that is used here has RAM: the lowest,
// the first above the firmware's, and the first above what a machine leaves for devices
// below 4 GiB, where there is none in a small guest.
var ramAt = [...]uint64{0, 1 << 20, 4 << 30}

// MemoryAddress gives where in QEMU's process the guest's RAM begins. All of it, as much
// as the config says, lies there in one piece, though the guest sees it in two if it is
// large. Unsupported if QEMU says anything else. The guest runs on.
func (i *Instance) MemoryAddress(ctx context.Context) (uint64, error) {
	size := uint64(i.config.Memory)
	for _, command := range []string{"query-memory-size-summary", "human-monitor-command"} {
		if !i.can.Schema.HasCommand(command) {
			return 0, i.notFound("QEMU has no " + command)
		}
	}
	var sizes struct {
		Base    uint64 `json:"base-memory"`
		Plugged uint64 `json:"plugged-memory"`
	}
	if err := i.monitor.Execute(ctx, "query-memory-size-summary", nil, &sizes); err != nil {
		return 0, i.wrap("find memory", err)
	}
	if sizes.Base != size || sizes.Plugged != 0 {
		return 0, i.notFound(fmt.Sprintf("QEMU has %d bytes of memory and %d that were plugged, not %d", sizes.Base, sizes.Plugged, size))
	}
	var begin hostPlace
	for n, at := range ramAt {
		answer, err := qmp.HumanMonitorCommand(ctx, i.monitor, qmp.HumanMonitorCommandArgs{CommandLine: fmt.Sprintf("gpa2hva %#x", at)})
		if err != nil {
			return 0, i.wrap("find memory", err)
		}
		place, known := parsePlace(answer)
		offset := place.address - begin.address
		switch {
		case !known && at < 4<<30:
			return 0, i.notFound(fmt.Sprintf("QEMU does not tell where %#x is: %q", at, answer))
		case !known:
		case n == 0:
			begin = place
		case place.region != begin.region || offset >= size || at < 4<<30 && offset != at:
			return 0, i.notFound(fmt.Sprintf("%#x is not where it should be: %q", at, answer))
		}
	}
	return begin.address, nil
}

func (i *Instance) notFound(cause string) error {
	return &fleet.Error{Code: fleet.Unsupported, Op: "find memory", Subject: "vm " + string(i.config.VM), Cause: cause}
}

// hostPlace is what QEMU says of an address of the guest.
type hostPlace struct {
	region  string
	address uint64 // in its process
}

// placeText is the answer of QEMU 2.10 and later to gpa2hva (monitor/hmp-cmds-target.c).
var placeText = regexp.MustCompile(`^Host virtual address for 0x[0-9a-f]+ \((.+)\) is 0x([0-9a-f]+)\s*$`)

func parsePlace(answer string) (p hostPlace, known bool) {
	parts := placeText.FindStringSubmatch(answer)
	if parts == nil {
		return p, false
	}
	address, err := strconv.ParseUint(parts[2], 16, 64)
	if err != nil {
		return p, false
	}
	return hostPlace{parts[1], address}, true
}

// DirtyRate is how fast a guest changed its memory, as QEMU found by a sample of its own.
// Pages that change again within the period count once.
type DirtyRate struct {
	Period time.Duration
	Rate   fleet.BytesPerSecond // in whole MiB
}

const (
	// ratesFrom is the least memory of which QEMU takes samples (migration/dirtyrate.c,
	// MIN_RAMBLOCK_SIZE): of less it says 0.
	ratesFrom = 128 * fleet.MiB
	// The sample, for each GiB, is at least and at most that many pages; for the whole
	// memory about ratePages.
	ratePagesMin, ratePagesMax, ratePages = 128, 16384, 4096
	// rateEvery is how often QEMU is asked whether it has measured, of which it does not
	// tell; rateLate is how much longer than the period it may take.
	rateEvery = 10 * time.Millisecond
	rateLate  = 5 * time.Second
)

// DirtyRates has QEMU measure over one period after the other, from the shortest that
// it can on, as many as fit into the span; at least one. Unsupported where QEMU can't, or
// the memory is less than 128 MiB.
func (i *Instance) DirtyRates(ctx context.Context, span time.Duration) (rates []DirtyRate, err error) {
	known := i.can.Schema
	if i.config.Memory < ratesFrom || !known.HasEnumValue("calc-dirty-rate", "mode", string(qmp.DirtyRateModePageSampling)) {
		return nil, &fleet.Error{Code: fleet.Unsupported, Op: "measure dirty rate", Subject: "vm " + string(i.config.VM),
			Cause: "QEMU takes no samples of it", Hint: "QEMU 6.2 and later do, of a guest with at least " + ratesFrom.String()}
	}
	period := time.Second
	if known.HasArgument("calc-dirty-rate", "calc-time-unit") {
		period = 125 * time.Millisecond
	}
	for used := time.Duration(0); len(rates) == 0 || used+period <= span; period *= 2 {
		rate, err := i.dirtyRate(ctx, period)
		if err != nil {
			return nil, err
		}
		rates = append(rates, rate)
		used += period
	}
	return rates, nil
}

func (i *Instance) dirtyRate(ctx context.Context, period time.Duration) (DirtyRate, error) {
	sample := min(max(int64(ratePages*fleet.GiB/i.config.Memory), ratePagesMin), ratePagesMax)
	args := qmp.CalcDirtyRateArgs{CalcTime: int64(period / time.Second), Mode: qmp.DirtyRateModePageSampling, SamplePages: &sample}
	var unit *string
	if period%time.Second != 0 {
		unit = new("millisecond")
		args.CalcTime, args.CalcTimeUnit = period.Milliseconds(), unit
	}
	if err := qmp.CalcDirtyRate(ctx, i.monitor, args); err != nil {
		return DirtyRate{}, i.wrap("measure dirty rate", err)
	}
	ctx, cancel := context.WithTimeout(ctx, period+rateLate)
	defer cancel()
	again := time.NewTicker(rateEvery)
	defer again.Stop()
	for {
		select {
		case <-again.C:
		case <-ctx.Done():
			return DirtyRate{}, i.wrap("measure dirty rate", context.Cause(ctx))
		}
		now, err := qmp.QueryDirtyRate(ctx, i.monitor, qmp.QueryDirtyRateArgs{CalcTimeUnit: unit})
		if err != nil {
			return DirtyRate{}, i.wrap("measure dirty rate", err)
		}
		if now.Status == qmp.DirtyRateStatusMeasured && now.DirtyRate != nil {
			return DirtyRate{period, fleet.BytesPerSecond(*now.DirtyRate) * fleet.BytesPerSecond(fleet.MiB)}, nil
		}
	}
}
