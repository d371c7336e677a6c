package wire

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
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

// TimeOf keeps "not set" apart from 1970. What is no time, and has no form in a
// record, counts as not set.
func TimeOf(stamp *timestamppb.Timestamp) time.Time {
	if !stamp.IsValid() {
		return time.Time{}
	}
	return stamp.AsTime()
}
