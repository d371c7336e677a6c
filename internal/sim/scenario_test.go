package sim

import (
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/pledge"
)

// calm gives a fleet that nobody harms, with its VMs started, and its leader.
func calm(t *testing.T, seed uint64) (*world, *server) {
	t.Helper()
	w := newWorld(seed, Options{}, nil)
	w.harmful = false
	t.Cleanup(w.close)
	w.run(10 * time.Second)
	s := w.leader()
	if s == nil {
		t.Fatal("nobody leads")
	}
	return w, s
}

// elsewhere is a host that a VM is not on.
func (v *vm) elsewhere() *host {
	for _, h := range v.hosts {
		if h.name != v.stored.Owner.Host {
			return h
		}
	}
	return nil
}

// placed is where a VM is, and what is there of it.
func (v *vm) placed() (*host, *machine) {
	h := v.hostNamed(v.owner.Host)
	return h, h.find(v.name, v.owner.Epoch)
}

func (w *world) newest(t *testing.T) migration.Migration {
	t.Helper()
	newest := w.newMigration()
	if newest.ID == "" {
		t.Fatal("there is no migration")
	}
	return newest
}

// newMigration is the newest, or none.
func (w *world) newMigration() (newest migration.Migration) {
	w.eachMigration(func(m migration.Migration) { newest = m })
	return newest
}

// Nobody says twice that a deadline has passed.
func TestDeadlineOutlivesAClockThatIsSetBack(t *testing.T) {
	t.Parallel()
	w, s := calm(t, 1)
	v := w.vms[0]
	target := v.elsewhere()
	target.agent.proc.hangs = w.now + time.Hour
	s.spawn(s.proc, func() { s.migrate(v, target) })
	w.run(w.now + time.Second)
	if m := w.newest(t); m.State != migration.Preparing {
		t.Fatalf("it is %s", m.State)
	}
	s.skew = -5 * time.Second
	w.run(w.now + 3*time.Minute)
	if m := w.newest(t); m.State != migration.Aborted {
		t.Errorf("it is %s long after its deadline at %v; the leader's clock says %v", m.State, m.Timer, s.Now())
	}
}

// A calm move loses no packet, and takes the guest's memory with it.
func TestMigrationWithoutFaults(t *testing.T) {
	t.Parallel()
	w, s := calm(t, 2)
	v := w.vms[0]
	v.chat(w.now + time.Minute)
	s.spawn(s.proc, func() { s.migrate(v, v.elsewhere()) })
	w.run(w.now + 90*time.Second)
	if m := w.newest(t); m.State != migration.Succeeded || m.Cause != "" {
		t.Errorf("it is %s: %s", m.State, m.Cause)
	}
	sent, delivered, _ := v.packets.Count()
	if sent < 100 || delivered != sent {
		t.Errorf("%d packets of %d were delivered", delivered, sent)
	}
	if still := w.unrest(); still != "" || len(w.guests.Faults()) > 0 {
		t.Errorf("%s; %v", still, w.guests.Faults())
	}
}

// A VM whose only instance its agent has ended is a violation, and not an excuse.
func TestAgentThatEndsTheLastInstance(t *testing.T) {
	t.Parallel()
	w, _ := calm(t, 3)
	h, m := w.vms[0].placed()
	w.spawn(h.agent.proc, h.agent.keeper(m).kill)
	w.run(w.now + time.Second)
	if faults := w.guests.Faults(); len(faults) != 1 || !strings.Contains(faults[0], "was the last of its VM") {
		t.Errorf("faults: %q", faults)
	}
}

// A VM that a fault has ended is none of its agent's doing.
func TestAgentThatEndsWhatAFaultHasHurt(t *testing.T) {
	t.Parallel()
	w, _ := calm(t, 3)
	h, m := w.vms[0].placed()
	h.machines = append(h.machines, &machine{host: h, vm: m.vm, epoch: m.epoch - 1, killed: true})
	w.spawn(h.agent.proc, h.agent.keeper(m).kill)
	w.run(w.now + time.Second)
	if faults := w.guests.Faults(); len(faults) != 0 {
		t.Errorf("faults: %q", faults)
	}
}

// A source that has sent its state is up all the same once its target has given up.
func TestSourceOfARefusedTargetIsUp(t *testing.T) {
	t.Parallel()
	w, _ := calm(t, 4)
	v := w.vms[0]
	_, m := v.placed()
	m.q.out = completed
	target := v.elsewhere()
	to := &machine{host: target, vm: v, epoch: m.epoch + 1, folder: &record{role: pledge.Arriving}}
	target.machines = append(target.machines, to)
	v.owner = fleet.Owner{Host: target.name, Epoch: to.epoch}
	if !v.down() {
		t.Error("a source that has sent its state counts although its target may run")
	}
	to.folder.role = pledge.Refused
	if v.down() {
		t.Error("the VM counts as down although its target has given up")
	}
}

// A packet of a client whose host believes it has the VM, and has no tap of it,
// counts as lost.
func TestPacketOnItsOwnHostWithoutATap(t *testing.T) {
	t.Parallel()
	w, _ := calm(t, 5)
	v := w.vms[0]
	h, _ := v.placed()
	h.local[v.index] = nil
	h.routes[v.index] = h
	h.send(v)
	if faults := v.packets.Faults(); len(faults) != 1 || !strings.Contains(faults[0], "no tap on its own host") {
		t.Errorf("faults: %q", faults)
	}
}

// The VMs of a lost host run elsewhere, and what it has when it comes back is removed.
func TestLostHost(t *testing.T) {
	t.Parallel()
	w, s := calm(t, 6)
	v := w.vms[0]
	h, _ := v.placed()
	target := v.elsewhere()
	s.spawn(s.proc, func() { s.migrate(v, target) })
	for w.newMigration().State != migration.Copying {
		w.run(w.now + 10*time.Millisecond)
	}
	h.crash()
	w.lost = h
	for _, one := range w.vms {
		w.tend(one, 0)
	}
	w.run(w.now + 10*time.Second) // its session has ended
	w.declareLost(h)
	w.run(w.now + 2*time.Minute)
	if m := w.newest(t); !m.Over() || !m.SourceLost {
		t.Errorf("the migration is %s, pending %v", m.State, m.Pending)
	}
	if on, _ := v.placed(); v.stored.Phase != fleet.VMRunning || on == h {
		t.Errorf("the VM is %s on %s", v.stored.Phase, v.stored.Owner.Host)
	}
	if !h.up {
		h.boot()
	}
	w.run(w.now + time.Minute)
	if still := w.unrest(); still != "" || len(h.machines) > 0 || len(w.guests.Faults()) > 0 {
		t.Errorf("%s; %d machines; %v", still, len(h.machines), w.guests.Faults())
	}
}

// A VM that is stopped leaves nothing, and runs elsewhere when it is started again.
func TestStoppedAndStartedElsewhere(t *testing.T) {
	t.Parallel()
	for _, grace := range []time.Duration{0, 2 * time.Second} {
		w, s := calm(t, 7)
		v := w.vms[0]
		h, _ := v.placed()
		target := v.elsewhere()
		s.spawn(s.proc, func() { s.stopVM(v, grace) })
		w.run(w.now + 5*time.Second)
		if v.stored.Phase != fleet.VMStopped || v.stored.Owner != (fleet.Owner{Epoch: 2}) || h.find(v.name, 1) != nil {
			t.Fatalf("it is %s, of %v; on its host is %v", v.stored.Phase, v.stored.Owner, h.find(v.name, 1))
		}
		s.spawn(s.proc, func() { s.startVM(v, target) })
		w.run(w.now + 5*time.Second)
		if v.stored.Phase != fleet.VMRunning || v.stored.Owner != (fleet.Owner{Host: target.name, Epoch: 3}) {
			t.Errorf("it is %s, of %v", v.stored.Phase, v.stored.Owner)
		}
		if still := w.unrest(); still != "" || len(w.guests.Faults()) > 0 {
			t.Errorf("%s; %v", still, w.guests.Faults())
		}
	}
}

// What a host says when it is back tells how its VMs have ended, and has it remove
// what is left of them.
func TestEndsThatAreToldOfLater(t *testing.T) {
	t.Parallel()
	for cause, harm := range map[string]func(*world, *host, *machine){
		"signal: killed": func(_ *world, _ *host, m *machine) { m.q.die() },
		"was rebooted": func(w *world, h *host, _ *machine) {
			h.crash()
			w.run(w.now + 10*time.Second)
			h.boot()
		},
		"it ended while host": func(w *world, h *host, m *machine) {
			w.crashAgent(h, time.Second)
			m.q.die()
		},
	} {
		w, _ := calm(t, 8)
		v := w.vms[0]
		h, m := v.placed()
		m.killed = true
		harm(w, h, m)
		w.run(w.now + 10*time.Second)
		if v.stored.Phase != fleet.VMFailed || !strings.Contains(v.stored.Cause, cause) {
			t.Errorf("it is %s: %s; want %q", v.stored.Phase, v.stored.Cause, cause)
		}
		if left := h.find(v.name, 1); left != nil {
			t.Errorf("%s: %v is left", cause, left)
		}
	}
}
