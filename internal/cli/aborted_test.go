package cli

import (
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// A migration that was aborted because its source ended has not left the VM
// running there.
func TestAbortedWithoutItsSource(t *testing.T) {
	for gone, says := range map[bool][2]string{
		false: {"vm web1 runs on h1\n", "the vm runs on at h1"},
		true:  {"vm web1 is down\n", "the vm is down: start it by `godwit vm start web1`"},
	} {
		m := &godwitv1.Migration{Id: "m1", Vm: "web1", Source: "h1", Target: "h2", State: "aborted", SourceGone: gone}
		var out strings.Builder
		silentApp().summary(&out, m)
		if !strings.HasSuffix(out.String(), says[0]) {
			t.Errorf("source gone %v: %q", gone, out.String())
		}
		if hint := fleet.HintOf(endOf(m)); !strings.HasPrefix(hint, says[1]) {
			t.Errorf("source gone %v: hint %q", gone, hint)
		}
	}
}
