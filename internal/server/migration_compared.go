package server

import (
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/wire"
)

// addComparison shows the source's machine, how the target's compared with it, and
// what keeps that from running.
func addComparison(message *godwitv1.Migration, m migration.Migration) {
	message.Machine = wire.EncodeMachine(m.Machine)
	if wait := m.ImageWait; wait != nil {
		message.ImageWait = &godwitv1.ImageWait{Disk: wait.Disk, Since: timestamp(wait.Since), Holder: string(m.Source)}
	}
	if m.Compared == nil {
		return
	}
	message.Comparison = &godwitv1.Comparison{At: timestamp(m.Compared.At)}
	for _, one := range m.Compared.Differences {
		message.Comparison.Differences = append(message.Comparison.Differences, &godwitv1.Difference{Field: one.Field, Source: one.Source, Target: one.Target})
	}
}
