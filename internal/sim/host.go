package sim

import (
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pledge"
	"godwit.dev/godwit/internal/sim/check"
)

// host is one machine of the fleet, with its kernel and its disk.
type host struct {
	*world
	node     *node
	index    int
	name     fleet.HostName
	up       bool
	booted   time.Duration
	crashed  time.Duration
	machines []*machine
	agent    *agent
	routes   []*host       // by VM: where this host sends its packets
	local    []*machine    // by VM: the tap on this host that has them
	routed   time.Duration // when the routes were last set
	ports    uint16        // of incoming QEMUs, so far
	boots    int
	spent    map[fleet.VMName]fleet.Epoch // at which VMs have run here and left

	full time.Duration // its disk has no room until then
	slow time.Duration // what a write takes, beside the usual
}

// vm is one virtual machine and the clients that talk to it.
type vm struct {
	*world
	index   int
	name    fleet.VMName
	uid     fleet.InstanceUID
	memory  float64   // bytes
	dirties float64   // bytes per second
	image   *emulator // that has the lock on the shared image
	packets *check.Packets
	stored  fleet.VM      // as last recorded
	owner   fleet.Owner   // of it
	moved   time.Duration // when that changed
	anew    time.Duration // when it was last started anew: nobody forwards from where it was before
}

func (h *host) find(vm fleet.VMName, epoch fleet.Epoch) *machine {
	return firstOf(h.machines, func(m *machine) bool { return m.vm.name == vm && m.epoch == epoch })
}

func (h *host) listens(port uint16) *emulator {
	for _, m := range h.machines {
		if m.port == port && !m.q.ended() && m.q.in == waiting && m.q.stream == nil {
			return m.q
		}
	}
	return nil
}

func (h *host) tunnelEnd(tunnel fleet.TunnelID) *machine {
	return firstOf(h.machines, func(m *machine) bool { return m.opened && m.tapped && m.tunnel == tunnel })
}

func (h *host) remove(m *machine) {
	h.machines = slices.DeleteFunc(h.machines, func(one *machine) bool { return one == m })
}

// lonely is how long a host may have had no word from a server before it counts
// as cut off: a little less than the servers wait for one.
const lonely = goneAfter - 10*time.Second

// cutOff: what the host knows may be old, or it may not know of anything new.
func (h *host) cutOff() bool {
	return !h.up || h.agent.session == nil && h.now-h.agent.lostSession > lonely
}

// crash is a loss of power: processes and taps are gone, the disk stays.
func (h *host) crash() {
	h.up, h.crashed = false, h.now
	h.end(h.agent.proc)
	for _, m := range h.machines {
		if m.q != nil && m.q.alive {
			m.killed = true
			m.q.die()
		}
		m.untap(true)
	}
	clear(h.local)
	clear(h.routes)
	h.agent.crashed()
}

// boot starts it again.
func (h *host) boot() {
	h.up, h.booted = true, h.now
	h.boots++
	h.agent.start()
}

// write takes the time of a write to the host's disk. What is written is there a
// moment before anybody knows, and a crash leaves the old or the new.
func (h *host) write(done func()) error {
	wait := h.between(500*time.Microsecond, 3*time.Millisecond) + h.slow
	if h.full > h.now {
		h.sleep(wait)
		return &fleet.Error{Code: fleet.Failed, Op: "write the machine's record", Cause: "no space left on the host's disk"}
	}
	h.at(nil, wait/2, func() {
		if h.up {
			done()
		}
	})
	h.sleep(wait)
	return nil
}

// down: the VM has no process anywhere but such as wait for its state, or have
// given it away, so it has lost what was sent to it.
func (v *vm) down() bool {
	for _, h := range v.hosts {
		for _, m := range h.machines {
			if m.vm == v && m.mayRun() {
				return false
			}
		}
	}
	return true
}

// mayRun: it runs, or could.
func (m *machine) mayRun() bool {
	if m.q.ended() || m.q.in == waiting || m.q.in == failed {
		return false
	}
	owner := m.vm.owner
	back := owner.Host == m.host.name // the VM was given back to it, at an epoch of which it is to hear
	spent := m.q.out == completed && m.epoch < owner.Epoch && !back && !m.vm.refused()
	return !spent
}

// refused: the recorded owner has given up its right to run, so that its source
// may run on.
func (v *vm) refused() bool {
	h := v.hostNamed(v.owner.Host)
	if h == nil {
		return false
	}
	m := h.find(v.name, v.owner.Epoch)
	return m != nil && m.folder != nil && m.folder.role == pledge.Refused
}

// hurt: a fault has ended an instance of it, and its remains are still there. What is
// on a host that is off counts until the VM was started anew.
func (v *vm) hurt() bool {
	return slices.ContainsFunc(v.hosts, func(h *host) bool {
		return slices.ContainsFunc(h.machines, func(m *machine) bool { return m.vm == v && m.killed && (h.up || v.anew <= h.crashed) })
	})
}

// chat has clients on all hosts send packets to the VM until a time.
func (v *vm) chat(until time.Duration) {
	v.at(nil, v.between(20*time.Millisecond, 600*time.Millisecond), func() {
		if v.now < until {
			v.hosts[v.chance.IntN(len(v.hosts))].send(v)
			v.chat(until)
		}
	})
}

// send is a packet of a client on this host.
func (h *host) send(v *vm) {
	to := h.routes[v.index]
	here := h.local[v.index]
	if !h.up || here == nil && to == nil {
		return
	}
	n := v.packets.Sent()
	switch {
	case here != nil:
		here.take(n, false, 0)
		return
	case to == h:
		v.lose(n, "no tap on its own host "+string(h.name)+" takes it", v.excuses(h, h))
		return
	}
	old := v.outdated(h)
	h.at(nil, h.latency(), func() {
		switch tap := to.local[v.index]; {
		case !to.up || !h.passes(h.node, to.node):
			v.lose(n, "the link or the host is gone", true)
		case tap == nil:
			v.lose(n, "no tap on "+string(to.name)+" takes it from "+string(h.name), old || v.excuses(h, to))
		default:
			tap.take(n, false, 0)
		}
	})
}

// excuses says whether a packet may be lost for want of a tap on a host that it
// was sent to: the VM has no process, or was started anew and the sender has not
// heard of it yet, the host has lost power since it had the VM, or one of the two
// has had no word from a server for as long as any waits for it.
func (v *vm) excuses(from, to *host) bool {
	lostPower := to.booted > v.moved && v.now-to.booted <= lonely
	return v.down() || v.stored.Phase != fleet.VMRunning || v.outdated(from) || lostPower || from.cutOff() || to.cutOff()
}

// outdated: the VM was started anew a short time ago, and a host's routes are of
// before that.
func (v *vm) outdated(h *host) bool { return h.routed < v.anew && v.now-v.anew <= lonely }

// lose is the end of a packet that nobody will have.
func (v *vm) lose(n int, why string, excused bool) {
	v.tell("packet %d to %s is lost, excused %v: %s", n, v.name, excused, why)
	v.packets.Lost(n, why, excused)
}
