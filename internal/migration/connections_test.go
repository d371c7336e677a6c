package migration

import (
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
	}{
		"both have it":                    {source: all, target: all, want: parallel},
		"the target cannot hold":          {source: all, target: only("multifd"), want: parallel},
		"the target does not know it":     {source: all, target: only("switchover-ack"), want: 1},
		"the source does not know it":     {source: only("switchover-ack"), target: all, want: 1},
		"the source cannot be held":       {source: only("multifd"), target: all, want: 1},
		"hosts that have not said so yet": {want: 1},
		"a limit that one can carry":      {source: all, target: all, limit: enoughForOne, want: 1},
		"a limit that one cannot carry":   {source: all, target: all, limit: enoughForOne + 1, want: parallel},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Connections(tt.source, tt.target, Policy{BandwidthMax: tt.limit}); got != tt.want {
				t.Errorf("%d, want %d", got, tt.want)
			}
		})
	}
}
