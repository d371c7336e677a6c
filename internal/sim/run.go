package sim

import (
	"fmt"
	"io"
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// Options says what is simulated.
type Options struct {
	Harm time.Duration // for so long there are faults; 0 for DefaultHarm
	Bug  Bug           // that is put in
}

func (o Options) harm() time.Duration {
	if o.Harm == 0 {
		return DefaultHarm
	}
	return o.Harm
}

// DefaultHarm is how long a fleet is hurt, in simulated time.
const DefaultHarm = 3 * time.Minute

// restWithin is how long after the last fault everything must have come to rest:
// the deadlines of two states one after the other, and what clocks were wrong by.
const restWithin = 5 * time.Minute

// restStep is the pause between looks whether it has.
const restStep = 5 * time.Second

// Counts is how much of everything there was.
type Counts struct {
	Migrations int                     `json:"migrations"`
	Final      map[migration.State]int `json:"final"`
	Ways       map[Way]int             `json:"ways"`
	Faults     map[Fault]int           `json:"faults"`
	Packets    int                     `json:"packets"`
	Lost       int                     `json:"packets_lost_with_an_excuse"`
	Operations int                     `json:"owner_operations"`
}

func newCounts() Counts {
	return Counts{Final: map[migration.State]int{}, Ways: map[Way]int{}, Faults: map[Fault]int{}}
}

func (c *Counts) add(other Counts) {
	c.Migrations += other.Migrations
	c.Packets, c.Lost, c.Operations = c.Packets+other.Packets, c.Lost+other.Lost, c.Operations+other.Operations
	addEach(c.Final, other.Final)
	addEach(c.Ways, other.Ways)
	addEach(c.Faults, other.Faults)
}

func addEach[K comparable](to, counts map[K]int) {
	for key, n := range counts {
		to[key] += n
	}
}

// Result is what came of one seed.
type Result struct {
	Seed      uint64        `json:"seed"`
	Simulated time.Duration `json:"simulated_ns"`
	Counts
	Digest     uint64   `json:"digest,string"`
	Violations []string `json:"violations"`
}

// Way is something rare that a migration went through.
type Way string

// The ways.
const (
	Waited       Way = "commit waited for an unheld source"
	RanOn        Way = "source ran on without servers"
	TakenBack    Way = "taken back after the commit"
	NeedOperator Way = "an operator was needed for a time"
	TargetLost   Way = "instance lost after the commit"
	HostGone     Way = "host declared lost"
	Cancelled    Way = "cancelled"
	Unaware      Way = "forwarding ended without word from a host"
)

// Ways lists them.
func Ways() []Way {
	return []Way{Waited, RanOn, TakenBack, NeedOperator, TargetLost, HostGone, Cancelled, Unaware}
}

// waysOf says which ones a migration went.
func waysOf(m migration.Migration) (ways []Way) {
	story := func(way Way, is func(migration.Entry) bool) {
		if slices.ContainsFunc(m.Story, is) {
			ways = append(ways, way)
		}
	}
	story(Waited, func(e migration.Entry) bool {
		return e.Event == migration.TargetLoaded && e.State == migration.Switching
	})
	story(RanOn, func(e migration.Entry) bool { return e.Event == migration.SourceRanOn })
	story(HostGone, func(e migration.Entry) bool { return e.Event == migration.HostLost })
	story(NeedOperator, func(e migration.Entry) bool { return e.State == migration.NeedsOperator })
	story(Cancelled, func(e migration.Entry) bool { return e.Event == migration.CancelAsked })
	for way, went := range map[Way]bool{TakenBack: m.TakenBack, TargetLost: m.TargetGone, Unaware: m.Unaware != ""} {
		if went {
			ways = append(ways, way)
		}
	}
	return ways
}

// Run simulates the fleet of one seed. The result depends on nothing else.
func Run(seed uint64, options Options, trace io.Writer) Result {
	options.Harm = options.harm()
	w := newWorld(seed, options, trace)
	defer w.close()
	w.harm(options.Harm)
	w.travel(options.Harm)
	w.look(options.Harm)
	for _, v := range w.vms {
		v.chat(options.Harm + 30*time.Second)
		w.tend(v, 0)
	}
	w.run(options.Harm)
	w.mend()
	end := w.now + restWithin
	for w.run(w.now + 30*time.Second + restStep); w.unrest() != "" && w.now < end; {
		w.run(w.now + restStep)
	}
	return w.result(seed)
}

// close ends every task.
func (w *world) close() {
	for _, s := range w.servers {
		w.end(s.proc)
	}
	for _, h := range w.hosts {
		w.end(h.agent.proc)
	}
}

func (w *world) result(seed uint64) Result {
	r := Result{Seed: seed, Simulated: w.now, Counts: newCounts(), Digest: w.digest}
	r.Faults = w.faults
	w.eachMigration(func(m migration.Migration) {
		r.Migrations++
		r.Final[m.State]++
		for _, way := range waysOf(m) {
			r.Ways[way]++
		}
	})
	r.Violations = append([]string{}, w.guests.Faults()...)
	if still := w.unrest(); still != "" {
		r.Violations = append(r.Violations, fmt.Sprintf("%v after the last fault: %s", w.now-w.options.Harm, still))
	}
	w.loseWithInstances()
	for i, v := range w.vms {
		sent, _, excused := v.packets.Count()
		r.Packets, r.Lost, r.Operations = r.Packets+sent, r.Lost+excused, r.Operations+w.owners[i].Operations()
		r.Violations = append(r.Violations, w.owners[i].Faults()...)
		r.Violations = append(r.Violations, v.packets.Faults()...)
	}
	for _, violation := range r.Violations {
		w.tell("VIOLATION: %s", violation)
	}
	return r
}

// loseWithInstances: what waits for an instance that a fault has ended nobody
// will ever have.
func (w *world) loseWithInstances() {
	for _, h := range w.hosts {
		for _, m := range h.machines {
			if m.q.ended() {
				m.untap(m.killed)
			}
		}
	}
}

func (w *world) eachMigration(do func(migration.Migration)) {
	for _, m := range w.records {
		do(*m)
	}
}

// unrest says what is not as it has to be in the end: every migration final and
// explained, each VM in effect exactly where its record says, and nothing left
// anywhere else. What is on a host that is off for good nobody can remove.
func (w *world) unrest() (still string) {
	w.eachMigration(func(m migration.Migration) {
		switch {
		case still != "":
		case !m.Over():
			still = fmt.Sprintf("%s is %s with %v pending", m.ID, m.State, m.Pending)
		case m.State != migration.Succeeded && m.Cause == "":
			still = fmt.Sprintf("%s ended without a cause", m.ID)
		}
	})
	for _, v := range w.vms {
		if still == "" {
			still = v.unrest()
		}
	}
	for _, h := range w.hosts {
		if still == "" {
			still = h.unrest()
		}
	}
	return still
}

func (v *vm) unrest() string {
	record := v.stored
	in, some := v.guests.InEffect(string(v.name))
	switch {
	case record.Migration != "":
		return fmt.Sprintf("%s is locked by %s", v.name, record.Migration)
	case record.Phase != fleet.VMRunning:
		return fmt.Sprintf("%s is %s", v.name, record.Phase)
	case !some:
		return fmt.Sprintf("%s is in effect nowhere; its owner is %v", v.name, record.Owner)
	case owner(fleet.HostName(in.Host), fleet.Epoch(in.Epoch)) != ownerOf(record):
		return fmt.Sprintf("%v is in effect, and the owner is %v", in, record.Owner)
	}
	return ""
}

// unrest looks at what is left on a host, and what is reserved there.
func (h *host) unrest() string {
	for _, m := range h.machines {
		if h.up && ownerOf(m.vm.stored) != owner(h.name, m.epoch) {
			return fmt.Sprintf("%s at epoch %d is left on %s", m.vm.name, m.epoch, h.name)
		}
	}
	ledger, _ := stored[fleet.Ledger](h.world, "ledgers/"+string(h.name))
	for _, v := range h.vms {
		if _, claimed := ledger.Claims[v.uid]; claimed && v.stored.Owner.Host != h.name {
			return fmt.Sprintf("%s is still reserved on %s", v.name, h.name)
		}
	}
	return ""
}
