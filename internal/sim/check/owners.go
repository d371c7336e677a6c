package check

import (
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"
)

// Owner is what a VM's record says.
type Owner struct {
	Host  string
	Epoch uint64
}

// Owners is the history of one VM's owner, as those saw it who asked for it or
// changed it.
type Owners struct {
	VM         string
	First      Owner
	operations []porcupine.Operation
}

// change is one that asks for the owner (From and To are zero), or a
// compare-and-swap.
type change struct {
	from, to Owner
	write    bool
}

// Read says that somebody asked from one time to another, and was told the owner.
func (o *Owners) Read(who int, from, to time.Duration, owner Owner) {
	o.add(who, change{}, from, to, owner)
}

// Swapping says that somebody begins to change it. As long as nothing more is
// said, it may take place at any time from then on, or never. Done says that it
// has taken place by now, failed that it never will.
func (o *Owners) Swapping(who int, from time.Duration, before, after Owner) (done func(to time.Duration), failed func()) {
	o.add(who, change{before, after, true}, from, math.MaxInt64, swapped(false))
	at := len(o.operations) - 1
	return func(to time.Duration) {
			o.operations[at].Return, o.operations[at].Output = int64(to), swapped(true)
		}, func() {
			o.operations[at].Input = change{before, before, true}
		}
}

// swapped is the output of a swap: whether it is known to have happened.
type swapped bool

func (o *Owners) add(who int, in change, from, to time.Duration, out any) {
	o.operations = append(o.operations, porcupine.Operation{
		ClientId: who, Input: in, Call: int64(from), Output: out, Return: int64(to),
	})
}

// Operations is how many there are.
func (o *Owners) Operations() int { return len(o.operations) }

// Faults looks for an order in which all of it makes sense.
func (o *Owners) Faults() []string {
	if porcupine.CheckOperations(o.model(), o.operations) {
		return nil
	}
	return []string{fmt.Sprintf("the history of the owner of %s is not linearizable: %d operations", o.VM, len(o.operations))}
}

func (o *Owners) model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return o.First },
		Step: func(state, input, output any) (bool, any) {
			now, in := state.(Owner), input.(change)
			switch {
			case !in.write:
				return output.(Owner) == now, now
			case now == in.from:
				return true, in.to
			}
			return !bool(output.(swapped)), now // one whose outcome is not known need not have happened
		},
	}
}
