package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"godwit.dev/godwit/internal/fleet"
)

// age gives how long ago something was, in its largest unit: "42s", "3h", "9d".
func (a *App) age(at *timestamppb.Timestamp) string {
	if at == nil {
		return ""
	}
	return coarse(a.Now().Sub(at.AsTime()))
}

func coarse(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// moment gives a time and how long ago it was.
func (a *App) moment(at *timestamppb.Timestamp) string {
	if at == nil {
		return ""
	}
	return at.AsTime().Local().Format("2006-01-02 15:04:05 MST") + " (" + a.age(at) + " ago)"
}

// roughly gives a time that is to come, in its largest unit and never too soon:
// "8s", "3m".
func roughly(d time.Duration) string {
	unit := time.Second
	switch {
	case d >= 48*time.Hour:
		unit = 24 * time.Hour
	case d >= 2*time.Hour:
		unit = time.Hour
	case d >= 2*time.Minute:
		unit = time.Minute
	}
	return coarse((d + unit - 1).Truncate(unit))
}

func size(bytes uint64) string { return fleet.Bytes(bytes).String() }

func rate(bytesPerSecond float64) string { return fleet.BytesPerSecond(bytesPerSecond).String() }

func number[N int32 | int64 | uint32 | uint64](n N) string { return fmt.Sprint(n) }

// numberIf gives "" for zero, which stands for none.
func numberIf[N int32 | int64 | uint32 | uint64](n N) string {
	if n == 0 {
		return ""
	}
	return number(n)
}

// millis gives measured milliseconds with the digits that matter: "0.42 ms",
// "12.3 ms", "2.41 s".
func millis(ms float64) string {
	switch {
	case ms >= 100_000:
		return coarse(time.Duration(ms * float64(time.Millisecond)))
	case ms >= 1000:
		return strconv.FormatFloat(ms/1000, 'f', 2, 64) + " s"
	case ms >= 10:
		return strconv.FormatFloat(ms, 'f', 1, 64) + " ms"
	}
	return strconv.FormatFloat(ms, 'f', 2, 64) + " ms"
}

// limit gives a limit in milliseconds as time, or what zero stands for.
func limit(ms int64, zero string) string {
	if ms == 0 {
		return zero
	}
	text := (time.Duration(ms) * time.Millisecond).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	return text
}

// sinceOf gives a time as an offset from another: "+2.413s".
func sinceOf(at, start *timestamppb.Timestamp) string {
	if at == nil || start == nil {
		return ""
	}
	return fmt.Sprintf("%+.3fs", at.AsTime().Sub(start.AsTime()).Seconds())
}
