package wire

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"godwit.dev/godwit/internal/fleet"
)

// ErrorMax bounds what a host's error takes of a record, in bytes.
const ErrorMax = 1000

// Bounded is what of a host's text is kept.
func Bounded(text string) string {
	if len(text) > ErrorMax {
		return strings.ToValidUTF8(text[:ErrorMax], "") + "…"
	}
	return text
}

// TypeMax bounds what is typed at once on a console, in bytes.
const TypeMax = 4096

// capabilitiesMax is more than any QEMU has.
const capabilitiesMax = 100

// QEMUOf reads what a host says of an instance's QEMU. What is longer than any of
// it is, is cut.
func QEMUOf(said interface {
	GetQemuVersion() string
	GetMigrationCapabilities() []string
}) fleet.InstanceQEMU {
	qemu := fleet.InstanceQEMU{Version: Bounded(said.GetQemuVersion())}
	names := said.GetMigrationCapabilities()
	for _, name := range names[:min(len(names), capabilitiesMax)] {
		qemu.Capabilities = append(qemu.Capabilities, Bounded(name))
	}
	return qemu
}

// TimeOf keeps "not set" apart from 1970. What is no time, and has no form in a
// record, counts as not set.
func TimeOf(stamp *timestamppb.Timestamp) time.Time {
	if !stamp.IsValid() {
		return time.Time{}
	}
	return stamp.AsTime()
}
