package migration

import "godwit.dev/godwit/internal/fleet"

// EffectKind says what is to be done.
type EffectKind string

// The effects. Each is idempotent and goes to one host.
const (
	PrepareTarget EffectKind = "prepare-target" // make ports, start an instance that waits for state
	StartCopy     EffectKind = "start-copy"     // copy until converged, then close the gate, stop, send the rest
	ResumeSource  EffectKind = "resume-source"  // end the copy, open the gate, run
	ReleaseTarget EffectKind = "release-target" // end the target's instance, return its frames, remove its ports
	RunTarget     EffectKind = "run-target"     // the commit is won: run
	RetireSource  EffectKind = "retire-source"  // end the source's instance, forward on
	ReleaseSource EffectKind = "release-source" // stop forwarding, remove the source's ports
	FinishTarget  EffectKind = "finish-target"  // open the gate fully, close the tunnel
)

// Effect is something that a host must do. It stays in Migration.Pending until
// its answer comes.
type Effect struct {
	Sequence uint64         `json:"sequence"`
	Kind     EffectKind     `json:"kind"`
	Host     fleet.HostName `json:"host"`
	// ReturnFrames: for ReleaseTarget, whether the source's gate was closed,
	// so that frames may wait at the target.
	ReturnFrames bool `json:"returnFrames,omitempty"`
	// Epoch: for ResumeSource, at which the instance goes on; zero is its own.
	Epoch fleet.Epoch `json:"epoch,omitempty"`
}
