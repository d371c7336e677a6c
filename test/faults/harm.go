package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"godwit.dev/godwit/internal/lab/fleetlab"
)

const (
	// Between two faults, and for how long one lasts that does not end by itself.
	calmMax = 6 * time.Second
	harmMin = 200 * time.Millisecond
	harmMax = 4 * time.Second
	// harmWithin bounds the doing of a fault, and of one to a QEMU, which often is
	// not there.
	harmWithin     = 10 * time.Second
	harmQEMUWithin = time.Second
)

// harm does one fault after the other to a fleet, of those that a VM must
// survive without the loss of a packet: no QEMU that may have the VM is killed,
// and no frames are cut off on their way between the hosts.
type harm struct {
	fleet  *fleetlab.Fleet
	random *rand.Rand

	mu   sync.Mutex
	done map[string]int
}

// survivable are the faults to choose from.
func survivable(lab size) (all []cell) {
	for _, c := range matrix(faults, victims, []state{copying}) {
		loses := c.Victim == hostLink || c.Victim.isQEMU() && c.Fault == sigkill
		if c.lacks(lab) == "" && !loses {
			all = append(all, c)
		}
	}
	return all
}

// run does harm until ctx ends. All is whole again when it returns.
func (h *harm) run(ctx context.Context) error {
	for h.rest(ctx, h.upTo(0, calmMax)) {
		p, err := lookAtPlane(h.fleet)
		if err != nil {
			return err
		}
		all := survivable(p.size)
		if err := h.do(ctx, p, all[h.random.IntN(len(all))]); err != nil {
			return err
		}
	}
	return nil
}

// do does one fault and ends it. What is not there, or ends in that moment, is
// not harmed.
func (h *harm) do(ctx context.Context, p plane, c cell) error {
	lasts, within := h.upTo(harmMin, harmMax), harmWithin
	if c.Victim.isQEMU() {
		within = harmQEMUWithin
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	begun, err := inject(bounded, h.fleet, p, c, nil)
	if begun.end != nil {
		h.rest(ctx, lasts)
		err = errors.Join(err, begun.end())
	}
	missed := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrProcessDone) || errors.Is(err, fs.ErrNotExist)
	switch {
	case missed && c.Victim.isQEMU():
		return nil
	case err != nil:
		return fmt.Errorf("%s %s: %w", c.Fault, c.Victim, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done[fmt.Sprintf("%s %s", c.Fault, c.Victim)]++
	return nil
}

func (h *harm) count() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, one := range h.done {
		n += one
	}
	return n
}

func (h *harm) upTo(least, most time.Duration) time.Duration {
	return least + time.Duration(h.random.Int64N(int64(most-least)))
}

// rest is false if ctx ends before.
func (h *harm) rest(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
