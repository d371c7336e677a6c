package migration

func switchOver(m *Migration, event Event) {
	m.State = Switching
	m.setTimer(event.At, m.Policy.SwitchMax, "the switch was not committed in time")
}

// switchMeasured: the source's QEMU has sent everything. In Copying the word that
// it stopped was lost, but this one says it too.
func switchMeasured(m *Migration, event Event) {
	if m.State == Copying {
		switchOver(m, event)
	}
	noteSwitch(m, event)
	m.SourceSent = m.Unheld // else nobody asks
	if m.TargetAsked {
		commit(m, event)
	}
}

func noteSwitch(m *Migration, event Event) {
	m.SourceMarks = new(event.Source)
}

// askCommit: the target has loaded everything. In Copying the word that the source
// stopped has not come, and may never come; but no target has loaded everything
// before its source was stopped behind a closed gate. What keeps it stopped is its
// agent or, if that may not be so, only that its QEMU knows of the load.
func askCommit(m *Migration, event Event) {
	if !m.Unheld || m.SourceSent {
		commit(m, event)
		return
	}
	m.TargetAsked = true
	if m.State == Copying {
		switchOver(m, event)
	}
}

// commit makes the target the owner.
func commit(m *Migration, event Event) {
	m.State = Settling
	m.Committed = true
	m.want(RunTarget, m.Target)
	m.setTimer(event.At, m.Policy.SettleMax, "the target did not run in time")
}

// sourceFailedInCopy: the word that it had stopped may not have come, so what
// holds for the switch holds here.
func sourceFailedInCopy(m *Migration, event Event) {
	if event.Gone {
		switchOver(m, event)
	}
	sourceFailedInSwitch(m, event)
}

// sourceFailedInSwitch: a source that died in the switch may have sent
// everything before, and then the target is the VM's only hope. A target that
// has not got everything fails by itself. But one that nobody held may have run on
// before it died, and have written to the disks what the target does not know.
// What the source said before it died may come after that, and changes nothing.
func sourceFailedInSwitch(m *Migration, event Event) {
	switch {
	case event.Gone && m.Unheld && !m.SourceSent:
		rollBack(m, event)
	case event.Gone:
		m.SourceGone = true
		m.Cause = m.causeOf(event)
		m.drop(StartCopy)
	case !m.SourceGone:
		rollBack(m, event)
	}
}
