package check

import (
	"fmt"
	"time"
)

// Instance is one QEMU, as the checks see it.
type Instance struct {
	VM    string
	Epoch uint64
	Host  string
	Birth int // tells instances of one epoch and host apart
}

func (i Instance) String() string { return fmt.Sprintf("%s at epoch %d on %s", i.VM, i.Epoch, i.Host) }

// Guests follows who has effect: whose vCPUs run, and so write the volume, and
// whose packets get out. Every instance calls at every change.
type Guests struct {
	Now     func() time.Duration
	faults  []string
	volumes map[string]*volume
	outlets map[string]*outlet
}

// volume is a VM's disk: the guest numbers its blocks, and writes one after the
// other.
type volume struct {
	last   int // block that was acknowledged
	epoch  uint64
	writer *Instance
}

// outlet is a VM's way to the network.
type outlet struct {
	epoch  uint64
	sender *Instance
}

// NewGuests begins with no VM.
func NewGuests(now func() time.Duration) *Guests {
	return &Guests{Now: now, volumes: map[string]*volume{}, outlets: map[string]*outlet{}}
}

func (g *Guests) fault(format string, values ...any) {
	g.faults = append(g.faults, fmt.Sprintf("%.3fs: ", g.Now().Seconds())+fmt.Sprintf(format, values...))
}

// Volume is the last block that a VM's guests were told is written.
func (g *Guests) Volume(vm string) int { return g.volume(vm).last }

func (g *Guests) volume(vm string) *volume {
	if g.volumes[vm] == nil {
		g.volumes[vm] = &volume{}
	}
	return g.volumes[vm]
}

func (g *Guests) outlet(vm string) *outlet {
	if g.outlets[vm] == nil {
		g.outlets[vm] = &outlet{}
	}
	return g.outlets[vm]
}

// Runs says that an instance's vCPUs begin, with a memory that knows of blocks up
// to one.
func (g *Guests) Runs(i Instance, memory int) {
	v := g.volume(i.VM)
	if v.writer != nil {
		g.fault("%v runs while %v does: two write the volume", i, *v.writer)
	}
	if i.Epoch < v.epoch {
		g.fault("%v runs after an instance at epoch %d had run", i, v.epoch)
	}
	if memory != v.last {
		g.fault("%v runs with a memory of block %d, and block %d was acknowledged", i, memory, v.last)
	}
	v.writer, v.epoch = &i, max(v.epoch, i.Epoch)
}

// Stops says that they stop, after the block that was written last.
func (g *Guests) Stops(i Instance, last int) {
	v := g.volume(i.VM)
	v.last = max(v.last, last)
	if v.writer != nil && *v.writer == i {
		v.writer = nil
	}
}

// Fenced says that the lock on the image kept an instance from running while
// another had it. The lock is the last resort: nothing may come to depend on it.
func (g *Guests) Fenced(i, holder Instance) {
	g.fault("%v was about to run, and only the lock on the image that %v has kept it from that", i, holder)
}

// Ended says that an agent ended an instance, without which its VM has none, and
// that no fault had ended one of them.
func (g *Guests) Ended(i Instance) {
	g.fault("%v was the last of its VM, and its agent ended it", i)
}

// Speaks says that what an instance sends gets out from now on.
func (g *Guests) Speaks(i Instance) {
	o := g.outlet(i.VM)
	if o.sender != nil {
		g.fault("%v is in effect while %v is", i, *o.sender)
	}
	if i.Epoch < o.epoch {
		g.fault("%v is in effect after an instance at epoch %d was", i, o.epoch)
	}
	o.sender, o.epoch = &i, max(o.epoch, i.Epoch)
}

// Falls says that it does no more.
func (g *Guests) Falls(i Instance) {
	if o := g.outlet(i.VM); o.sender != nil && *o.sender == i {
		o.sender = nil
	}
}

// InEffect gives the instance whose packets get out.
func (g *Guests) InEffect(vm string) (Instance, bool) {
	if sender := g.outlet(vm).sender; sender != nil {
		return *sender, true
	}
	return Instance{}, false
}

// Faults lists what must not be, in the order in which it was.
func (g *Guests) Faults() []string { return g.faults }
