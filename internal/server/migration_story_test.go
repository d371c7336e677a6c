package server

import (
	"fmt"
	"testing"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/placement"
)

// A record has room for some hosts only, and says how many it leaves out.
func TestChoiceIsBounded(t *testing.T) {
	t.Parallel()
	chosen := placement.Result{Host: "best", Why: "it is empty", Ranked: []placement.Ranked{{Host: "best"}}}
	for i := range 3 * maxHosts {
		name := fleet.HostName(fmt.Sprintf("h%d", i))
		chosen.Ranked = append(chosen.Ranked, placement.Ranked{Host: name, Why: "it has room"})
		chosen.Refused = append(chosen.Refused, placement.Refusal{Host: name, Why: []string{"it is full"}})
	}
	var m migration.Migration
	noteChoice(&m, chosen, "")
	if m.Why != "it is empty" || m.Choice.Named || len(m.Refused) != maxHosts || len(m.Choice.Others) != maxHosts || m.Choice.Unlisted != 4*maxHosts {
		t.Errorf("%d refused, %d others, %d unlisted", len(m.Refused), len(m.Choice.Others), m.Choice.Unlisted)
	}
	if m.Choice.Others[0].Host != "h0" {
		t.Errorf("the target counts as another host: %v", m.Choice.Others[0])
	}

	var named migration.Migration
	noteChoice(&named, placement.Result{Host: "best", Ranked: []placement.Ranked{{Host: "best"}}}, "best")
	if !named.Choice.Named || named.Choice.Unlisted != 0 {
		t.Errorf("%+v", named.Choice)
	}
}
