package sim

import (
	"testing"
	"time"

	"godwit.dev/godwit/internal/migration"
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

func (w *world) newest(t *testing.T) migration.Migration {
	t.Helper()
	var newest migration.Migration
	w.eachMigration(func(m migration.Migration) { newest = m })
	if newest.ID == "" {
		t.Fatal("there is no migration")
	}
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
