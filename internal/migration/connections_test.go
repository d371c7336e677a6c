package migration

import (
	"strings"
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

func TestConnections(t *testing.T) {
	all := fleet.QEMUFeatures{Capabilities: []string{"multifd", "switchover-ack"}}
	only := func(names ...string) fleet.QEMUFeatures { return fleet.QEMUFeatures{Capabilities: names} }
	for name, tt := range map[string]struct {
		source, target fleet.QEMUFeatures
		limit          fleet.BytesPerSecond
		want           int
		why            string // a part of it
	}{
		"both have it":                    {source: all, target: all, want: parallel, why: "one processor"},
		"the target cannot hold":          {source: all, target: only("multifd"), want: parallel, why: "one processor"},
		"the target does not know it":     {source: all, target: only("switchover-ack"), want: 1, why: "the target's QEMU knows"},
		"the source does not know it":     {source: only("switchover-ack"), target: all, want: 1, why: "the source's QEMU knows"},
		"the source cannot be held":       {source: only("multifd"), target: all, want: 1, why: "by an estimate"},
		"hosts that have not said so yet": {want: 1, why: "the source's QEMU knows"},
		"a limit that one can carry":      {source: all, target: all, limit: enoughForOne, want: 1, why: "carry 119.2MiB/s"},
		"a limit that one cannot carry":   {source: all, target: all, limit: enoughForOne + 1, want: parallel, why: "one processor"},
	} {
		t.Run(name, func(t *testing.T) {
			got, why := Connections(tt.source, tt.target, Policy{BandwidthMax: tt.limit})
			if got != tt.want || !strings.Contains(why, tt.why) {
				t.Errorf("%d, because %s; want %d, because %s", got, why, tt.want, tt.why)
			}
		})
	}
}
