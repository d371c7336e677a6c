package migration

// StopRule is by what an agent found that a copy may end. It crosses the wire.
type StopRule string

// The rules. Each allows what is left to take some time.
const (
	LittleLeft StopRule = "little-left" // too little for another pass
	NoGain     StopRule = "no-gain"     // the passes leave no less, and what is left fits into Policy.BlackoutMax
	OnlyPass   StopRule = "only-pass"   // the source's QEMU must be stopped before its first pass ends
)
