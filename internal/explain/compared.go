package explain

import (
	"fmt"
	"strings"

	"godwit.dev/godwit/internal/fleet"
)

// compared says what came of the comparison of both machines.
func (t teller) compared() string {
	if text := t.differences(); text != "" {
		return "has another machine for the guest than the source had: " + text
	}
	return "has the same machine for the guest as the source had"
}

// differences lists them, "" if there are none.
func (t teller) differences() string {
	var list []string
	for _, one := range t.GetComparison().GetDifferences() {
		list = append(list, fleet.Difference{Field: one.GetField(), Source: one.GetSource(), Target: one.GetTarget()}.String())
	}
	return strings.Join(list, "; ")
}

// machine is a sentence on what the guest sees at the target, once it runs there.
func (t teller) machine() string {
	switch {
	case !t.GetTargetRuns():
		return ""
	case t.GetComparison() == nil:
		return "The target's machine was not compared with the source's."
	case t.differences() != "":
		return fmt.Sprintf("The target's machine is not what the source's was: %s.", t.differences())
	}
	return "" // as it should be; the timeline says it
}
