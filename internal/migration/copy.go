package migration

func start(m *Migration, event Event) {
	m.State = Preparing
	m.want(PrepareTarget, m.Target)
	m.setTimer(event.At, m.Policy.PrepareMax, "the target was not prepared in time")
}

func abortPlan(m *Migration, event Event) {
	m.Cause = m.causeOf(event)
	m.end(Aborted, event)
}

func copyMemory(m *Migration, event Event) {
	m.State = Copying
	m.Port, m.DiskPort, m.TargetQEMU, m.Machine = event.Port, event.DiskPort, event.QEMU, event.Machine
	m.CopyStarted = true
	m.want(StartCopy, m.Source)
	m.setTimer(event.At, m.Policy.CopyMax, "the copy did not converge in time")
}

func noteProgress(m *Migration, event Event) {
	m.Progress = event.Progress
	m.Progress.Heard = event.At
	if event.Progress.PassBegins && len(m.Passes) < maxPasses {
		m.Passes = append(m.Passes, Pass{
			Number: event.Progress.Pass, At: event.Progress.At,
			Sent: event.Progress.Sent, Remaining: event.Progress.Remaining,
		})
	}
}
