package reconcile

import (
	"fmt"
	"math"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/wire"
)

// maxStopMs is more than any copy's last part is expected to take.
const maxStopMs = 24 * 3600 * 1000

// stopDetail says who stopped the guest and, where the agent decided it, why
// then: what was left, how long it would take, and what that was held against.
func stopDetail(said *godwitv1.SourceStopped) string {
	detail := "stopped by " + wire.Bounded(said.GetStoppedBy())
	why := said.GetWhy()
	left, rate, limit := why.GetRemainingBytes(), why.GetBandwidthBytesPerSecond(), why.GetLimitMs()
	ms := float64(left) / rate * 1000
	if sane := rate > 0 && !math.IsInf(rate, 0) && ms < maxStopMs; !sane { // or not told
		return detail
	}
	detail += fmt.Sprintf(": %v left at %v, about %.1f ms", fleet.Bytes(left), fleet.BytesPerSecond(rate), ms)
	switch migration.StopRule(why.GetRule()) {
	case migration.LittleLeft:
		detail += fmt.Sprintf("; below %.1f ms no further pass is made", limit)
	case migration.NoGain:
		detail += fmt.Sprintf(", limit %.0f ms; another pass would not leave much less", limit)
	case migration.OnlyPass:
		detail += fmt.Sprintf("; its QEMU must be stopped before the end of the first pass, and is at %.0f ms", limit)
	}
	return detail
}
