package agent

// A tap that nobody has open has no carrier, and its bridge gives it nothing. That of
// a VM that has left forwards, and that of a target that will never run returns frames,
// and their QEMU is gone: the agent has it open, and has somebody keep it open who
// outlives the agent.

// Descriptors keeps descriptors open beyond the agent's end, for the next one, by
// names of up to 32 bytes.
type Descriptors interface {
	// Keep has a copy kept, in place of what is kept by that name.
	Keep(name string, fd int) error
	// Kept gives a copy, which is the caller's; found is false if there is none.
	Kept(name string) (fd int, found bool, err error)
	// Drop closes what is kept by a name, if anything is.
	Drop(name string) error
	Names() ([]string, error)
}

// keepTaps has taps kept open of an instance that ends or has ended. One descriptor of each
// does: whatever queue a frame is for, the gate sends it away before.
func (m *machine) keepTaps(ports []*port) {
	keeper := m.agent.config.Descriptors
	if keeper == nil {
		return
	}
	for _, port := range ports {
		fds := port.tap.FDs()
		if len(fds) == 0 {
			continue
		}
		if err := keeper.Keep(port.tap.Name(), fds[0]); err != nil {
			m.agent.log.Warn("while no agent runs here this tap will not forward", "vm", m.key.vm, "port", port.Name, "error", err)
		}
	}
}

// keptTap gives what an earlier agent has had kept of a tap; none if it has not.
func (a *Agent) keptTap(name string) (fds []int) {
	if a.config.Descriptors == nil {
		return nil
	}
	fd, found, err := a.config.Descriptors.Kept(name)
	if err != nil {
		a.log.Warn("nobody says whether a tap was kept open", "tap", name, "error", err)
	}
	if !found {
		return nil
	}
	return []int{fd}
}

// dropTap ends the keeping of a tap that was removed.
func (a *Agent) dropTap(name string) {
	if a.config.Descriptors == nil {
		return
	}
	if err := a.config.Descriptors.Drop(name); err != nil {
		a.log.Warn("a tap that was removed may be kept open", "tap", name, "error", err)
	}
}

// dropStrangers ends the keeping of taps that an earlier agent has removed, but had
// not dropped.
func (a *Agent) dropStrangers() {
	if a.config.Descriptors == nil {
		return
	}
	known := map[string]bool{}
	for _, m := range a.all() {
		if m.unread { // it may have any
			return
		}
		for _, port := range m.record.Ports {
			known[port.Tap] = true
		}
	}
	names, err := a.config.Descriptors.Names()
	if err != nil {
		a.log.Warn("nobody says which taps are kept open", "error", err)
	}
	for _, name := range names {
		if !known[name] {
			a.dropTap(name)
		}
	}
}
