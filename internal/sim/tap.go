package sim

import (
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/pledge"
)

// mode is what a gate lets pass; see the modes of the network package.
type mode string

const (
	closed     mode = "closed"
	tunnelOnly mode = "tunnel-only"
	pass       mode = "pass"
	leaving    mode = "leaving"
	redirect   mode = "redirect"
	arriving   mode = "arriving"
	settling   mode = "settling"
)

// record is what an agent has written to a machine's folder.
type record struct {
	role      pledge.Role
	migration string
	peer      *host
	switchMax time.Duration
}

// machine is what a host has of an instance: the folder, the tap with its gate,
// the process. All of it outlives the agent, and the folder also the host's end.
type machine struct {
	host   *host
	vm     *vm
	epoch  fleet.Epoch
	folder *record // nil: nothing is written yet
	tapped bool    // the tap exists
	gate   mode
	remote *host
	tunnel fleet.TunnelID
	opened bool // the tunnel's end is here
	tap    []int
	q      *emulator
	killed bool // a fault has ended what was here
	speaks bool // what the guest sends gets out
	port   uint16
}

const tapQueue = 8192 // packets

func (m *machine) outlets() bool { return m.gate == pass || m.gate == leaving || m.gate == settling }

// judge notes whether the instance is in effect.
func (m *machine) judge() {
	speaks := m.tapped && m.q != nil && m.q.counted && m.outlets()
	switch {
	case speaks && !m.speaks:
		m.host.guests.Speaks(m.q.identity())
	case !speaks && m.speaks:
		m.host.guests.Falls(m.q.identity())
	}
	m.speaks = speaks
}

// setGate is one step of the kernel.
func (m *machine) setGate(to mode, remote *host) {
	if !m.tapped {
		return
	}
	m.host.tell("gate of %s at epoch %d on %s: %s", m.vm.name, m.epoch, m.host.name, to)
	m.gate, m.remote = to, remote
	m.judge()
	m.flush()
}

// flush lets the guest read what waits for it.
func (m *machine) flush() {
	if m.q == nil || !m.q.counted || m.gate == closed || m.gate == tunnelOnly || m.gate == arriving {
		return
	}
	for _, n := range m.tap {
		m.vm.packets.Delivered(n)
	}
	m.tap = m.tap[:0]
}

// take is a packet that comes to the tap.
func (m *machine) take(n int, byTunnel bool, hops int) {
	switch m.gate {
	case closed:
		m.vm.lose(n, "the gate on "+string(m.host.name)+" is closed", m.killed)
	case tunnelOnly:
		if !byTunnel {
			m.vm.lose(n, "it came to the target on "+string(m.host.name)+" before that had the VM", false)
			return
		}
		m.keep(n)
	case leaving, redirect:
		m.forward(n, hops)
	default:
		m.keep(n)
	}
}

func (m *machine) keep(n int) {
	if len(m.tap) >= tapQueue {
		m.vm.lose(n, "the queue is full", true)
		return
	}
	m.tap = append(m.tap, n)
	m.flush()
}

// hopsMax bounds how often a packet may be sent on.
const hopsMax = 8

// forward sends a packet on by the migration's tunnel.
func (m *machine) forward(n, hops int) {
	w, from, to, tunnel := m.host.world, m.host, m.remote, m.tunnel
	w.at(nil, w.latency(), func() {
		switch {
		case to == nil || hops >= hopsMax:
			m.vm.lose(n, "it was sent round and round", false)
		case !to.up || !w.passes(from.node, to.node):
			m.vm.lose(n, "the link or the host is gone", true)
		default:
			end := to.tunnelEnd(tunnel)
			if end == nil {
				m.vm.lose(n, "the tunnel from "+string(from.name)+" ends nowhere on "+string(to.name), m.vm.excuses(from, to) || m.isLeftover())
				return
			}
			end.take(n, true, hops+1)
		}
	})
}

// drain sends on what waits in the tap.
func (m *machine) drain() (packets int) {
	waiting := slices.Clone(m.tap)
	m.tap = m.tap[:0]
	for _, n := range waiting {
		m.forward(n, 0)
	}
	return len(waiting)
}

// untap removes the tap with whatever is in it.
func (m *machine) untap(excused bool) {
	for _, n := range m.tap {
		m.vm.lose(n, "it was in the tap that "+string(m.host.name)+" removed", excused)
	}
	m.tap, m.tapped, m.opened = nil, false, false
	m.judge()
	if m.host.local[m.vm.index] == m {
		m.host.local[m.vm.index] = nil // the kernel's entry goes with the device
	}
}

// remains: of an instance that was its VM's owner and has ended by itself. What
// a target leaves is its migration's to remove, unless that goes on without its host.
func (m *machine) remains() bool {
	if !m.q.ended() || m.folder == nil {
		return false
	}
	target := m.folder.role == pledge.Arriving || m.folder.role == pledge.Refused
	return !target || slices.ContainsFunc(m.host.records, func(one *migration.Migration) bool {
		return string(one.ID) == m.folder.migration && one.TargetLost
	})
}

// toldWithin is the time that it takes to have a host that was away do what it
// missed.
const toldWithin = 2 * time.Second

// isLeftover: it remains of before the VM was started anew, and its agent was
// away, or is just being told to remove it.
func (m *machine) isLeftover() bool {
	a := m.host.agent
	return m.remains() && m.vm.stored.Migration == "" && m.epoch < m.vm.owner.Epoch && (a.session == nil || a.now-a.sessionBegan < toldWithin)
}

// judgeAs gives the instance another epoch, without a gap.
func (m *machine) judgeAs(epoch fleet.Epoch) {
	runs := m.q.runs
	m.q.runs = false
	m.q.account()
	m.epoch, m.q.runs = epoch, runs
	m.q.account()
}
