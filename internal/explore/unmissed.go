package explore

// Unmissed is a guard of the core that makes no difference to what is explored.
type Unmissed struct {
	Guard string // where it is, and what it asks
	Why   string // nothing comes of taking it out
}

// UnmissedGuards lists them. With [Mutants] these are all conditions of Step, of the
// table's cells and what they call, and of Migration.Locked and Down.
func UnmissedGuards() []Unmissed {
	return []Unmissed{
		{"Step: a timer fires, and none is set", "only a final state has none, and there the table says late"},
		{"Step: an answer is of the effect's kind", "no two effects have the same sequence"},
		{"table: the commit was asked for before, and waits for the source", "asked again it changes nothing"},
		{"askCommit and switchMeasured: that the source stopped was not heard", "else the switch only has its time anew"},
		{"switchMeasured: the target has asked", "the source's QEMU has the target's word that it loaded"},
		{"table: after the commit a refusal needs that the target is awaited", "in Settling no correct host refuses, or runs on, once the target has run; \"a target gives up that has run\" breaks that promise"},
		{"settle: the target runs", "nothing that settle waits for is asked for or posted before it runs"},
		{"settle: the grace time has begun", "another word would only make it begin anew"},
		{"addressesKnown: for the first time", "the second changes only what the record says of hosts that were away"},
		{"targetFailedAfterCommit: the target is awaited", "in Settling that is so whenever it does not run, and what runs was asked for before"},
		{"lose: the measurement is not waited for", "the next word of a source that has ended drops it"},
		{"sourceFailedInSwitch: the measurement is not waited for", "likewise"},
		{"rollBack: a source that failed has ended", "only in Preparing is it not known before, and there the source was told nothing"},
		{"rollBack: an epoch only for what was taken back", "else it is the source's own, at which it is already"},
		{"releaseTarget: frames return only to a source that has not ended", "nobody is there to take them"},
		{"Migration.Locked: the target does not run", "no migration whose target runs needs an operator; that is checked"},
		{"Migration.Locked, SourceMayRunOn and AwaitsTarget: the record was not abandoned", "records that are an old copy are not explored"},
		{"canLose: it was not told before", "told again nothing more follows"},
		{"targetLost: the VM has an instance", "else the source is told to release twice, and does it once"},
		{"answerForLost: the table acts on the answer", "without it Step crashes at the first effect that has none"},
		{"answerForLost: why frames did not return", "only people read it"},
		{"Migration.SourceMayRunOn: an operator is needed", "what leads out of that drops the source's release, which is asked as well"},
		{"Migration.SourceMayRunOn: the source has not ended", "it takes three faults, and then the VM is locked until the source's host answers, or is declared lost too"},
		{"Migration.Down: the target is lost", "while the VM is locked, its target has also no instance any more"},
		{"Step: a failure that was told before, and changes nothing, is late", "only the story would tell it twice"},
		{"awaitsComparison: the source's machine is known, was not compared, and the target has run", "only people read it"},
		{"noteProgress and the causes: what is kept and how it is put", "only people read it"},
	}
}
