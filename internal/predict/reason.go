package predict

import (
	"fmt"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// reason says in one sentence what the forecast comes from.
func (in Inputs) reason(k knowledge, f Forecast) string {
	if !k.known {
		return fmt.Sprintf("how much the guest changes is not known; the link leaves %s, and the memory alone takes %v",
			rateText(k.rate), round(k.firstPass()))
	}
	copies := fmt.Sprintf("the link leaves %s", rateText(k.rate))
	if first := k.firstPass(); f.Pass <= 1 && first > in.Limits.Copy {
		return fmt.Sprintf("%s: the first pass alone takes %v, limit %v", copies, round(first), in.Limits.Copy)
	}
	dirties := fmt.Sprintf("dirties %s", rateText(float64(k.curve.Rate())))
	if set, bounded := k.curve.Set(); bounded && set >= fleet.MiB {
		dirties += fmt.Sprintf(" over a %s set", min(set, in.Guest.Memory)/fleet.MiB*fleet.MiB)
	}
	if k.curve.Rate() == 0 {
		dirties = "hardly dirties memory"
	}
	ends := fmt.Sprintf("pre-copy settles at %v, limit %v", round(f.Settles), in.Limits.Blackout)
	if f.Fails() && f.Settles <= in.Limits.Blackout {
		ends = fmt.Sprintf("the passes take longer than %v", in.Limits.Copy)
	}
	return fmt.Sprintf("%s; %s; %s", dirties, copies, ends)
}

// firstPass is how long that takes, or what is left of it.
func (k knowledge) firstPass() time.Duration {
	took, _ := k.draw(0, 0).takes(1, k.at.remaining)
	return seconds(k.at.elapsed + took)
}

func rateText(bytesPerSecond float64) string {
	return fleet.Bytes(bytesPerSecond).String() + "/s"
}

// round leaves of a time what a reader can use.
func round(d time.Duration) time.Duration {
	switch {
	case d >= time.Minute:
		return d.Round(time.Second)
	case d >= time.Second:
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}
