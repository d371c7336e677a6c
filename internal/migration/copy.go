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

func targetPrepared(m *Migration, event Event) {
	m.Port, m.DiskPort, m.TargetQEMU, m.Machine = event.Port, event.DiskPort, event.QEMU, event.Machine
	if m.copyIfReady(event); m.State == Preparing && m.Timer != nil {
		m.Timer.What = "the guest was not measured in time"
	}
}

// copyIfReady begins the copy, once the target is prepared and the forecast made.
func (m *Migration) copyIfReady(event Event) {
	if m.State != Preparing || m.isPending(PrepareTarget) || m.Foreseen.Awaited {
		return
	}
	m.State = Copying
	m.CopyStarted = true
	m.want(StartCopy, m.Source)
	m.setTimer(event.At, m.Policy.CopyMax, "the copy did not converge in time")
}

// copyExhausted: the time for the copy is over.
func copyExhausted(m *Migration, event Event) {
	m.Foreseen.Exhausted = true
	rollBack(m, event)
}

func noteProgress(m *Migration, event Event) {
	m.Progress = event.Progress
	m.Progress.Heard = event.At
	if event.Progress.PassBegins && len(m.Passes) < maxPasses {
		m.Passes = append(m.Passes, Pass{
			Number: event.Progress.Pass, At: event.Progress.At,
			Sent: event.Progress.Sent, Remaining: event.Progress.Remaining, Elapsed: event.Progress.Elapsed,
		})
	}
	m.evaluate(event)
}
