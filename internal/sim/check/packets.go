package check

import "fmt"

// Packets follows every packet that clients sent to one VM.
type Packets struct {
	VM     string
	fates  []fate
	faults []string
}

type fate struct {
	delivered int
	lost      string // why, "" if it is not
	excused   bool
}

// Sent gives a new packet its number.
func (p *Packets) Sent() int {
	p.fates = append(p.fates, fate{})
	return len(p.fates) - 1
}

// Delivered says that a guest has it.
func (p *Packets) Delivered(n int) {
	f := &p.fates[n]
	if f.delivered++; f.delivered == 2 {
		p.faults = append(p.faults, fmt.Sprintf("packet %d to %s was delivered twice", n, p.VM))
	}
}

// Lost says why nobody will ever have it, and whether that is excused.
func (p *Packets) Lost(n int, why string, excused bool) {
	p.fates[n].lost, p.fates[n].excused = why, excused
}

// Count is how many were sent, delivered, and lost with an excuse.
func (p *Packets) Count() (sent, delivered, excused int) {
	for _, f := range p.fates {
		switch {
		case f.delivered > 0:
			delivered++
		case f.lost != "" && f.excused:
			excused++
		}
	}
	return len(p.fates), delivered, excused
}

// Faults accounts for all of them at the end, when nothing is on its way.
func (p *Packets) Faults() []string {
	faults := p.faults
	for n, f := range p.fates {
		switch {
		case f.delivered > 0 || f.lost != "" && f.excused:
		case f.lost != "":
			faults = append(faults, fmt.Sprintf("packet %d to %s is lost: %s", n, p.VM, f.lost))
		default:
			faults = append(faults, fmt.Sprintf("nobody knows where packet %d to %s is", n, p.VM))
		}
	}
	return faults
}
