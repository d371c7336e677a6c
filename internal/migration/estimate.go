package migration

import (
	"time"

	"godwit.dev/godwit/internal/fleet"
)

const (
	// soonest keeps those from asking in a circle who were told to ask again.
	soonest = time.Second
	// farthest is beyond what any rate can foretell.
	farthest = 30 * 24 * time.Hour
)

// ETA expects the copy to shrink by what the link leaves over the guest's
// dirtying; negative when its end is not in sight. While local disks are copied it is
// the end of that, before the memory's first pass.
func (p Progress) ETA() time.Duration {
	if left := p.DiskTotal - min(p.DiskCopied, p.DiskTotal); p.Pass == 0 && p.DiskTotal > 0 {
		return timeFor(left, p.DiskRate)
	}
	return timeFor(p.Remaining, p.Bandwidth-p.DirtyRate)
}

func timeFor(left fleet.Bytes, rate fleet.BytesPerSecond) time.Duration {
	if rate <= 0 || float64(left)/float64(rate) > farthest.Seconds() {
		return -time.Millisecond
	}
	return time.Duration(float64(left) / float64(rate) * float64(time.Second))
}

// FreeIn estimates when the VM's lock is given back, or more is known; zero when
// nobody can tell. It is what is to be expected: if a host does not answer, it
// takes until the deadline of the state, and perhaps the next one's.
func (m *Migration) FreeIn(now time.Time) time.Duration {
	if m.Timer == nil {
		return 0
	}
	left := max(0, m.Timer.At.Sub(now))
	if m.Timer.After > 0 {
		left = min(left, m.Timer.After) // it was set by another clock
	}
	switch m.State {
	case Planned, Preparing: // the copy is not foreseen yet; by then it is, or is off
		return max(soonest, left)
	case Copying:
		if eta := m.Progress.ETA(); eta >= 0 && !m.Progress.Heard.IsZero() {
			left = min(left, max(0, eta-max(0, now.Sub(m.Progress.Heard))))
		}
		return max(soonest, left+m.Policy.Grace)
	case Switching:
		return max(soonest, min(left, m.Policy.BlackoutMax)+m.Policy.Grace)
	case Settling:
		return max(soonest, min(left, m.Policy.Grace))
	}
	return soonest // rolling back is two answers of hosts
}
