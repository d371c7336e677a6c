package server

import (
	"fmt"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// checkVersion refuses a mutation that means another version of the record. Zero
// means any.
func checkVersion[T any](op, noun string, entry store.Entry[T], wanted int64) error {
	if wanted == 0 || wanted == entry.Version {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Conflict, Op: op, Subject: noun + " " + entry.Name,
		Cause: fmt.Sprintf("its record is at version %d, not %d: it has changed since it was read", entry.Version, wanted),
		Hint:  "look at it again: godwit " + noun + " show " + entry.Name,
	}
}

// following gives the version that a request means after what it waited for has
// changed the record: that and nothing else.
func following(wanted, changed int64) int64 {
	if wanted == 0 {
		return 0
	}
	return changed
}
