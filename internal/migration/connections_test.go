package migration

import (
	"slices"
	"strings"
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

func TestConnections(t *testing.T) {
	all := fleet.Capabilities{"multifd", "switchover-ack"}
	only := func(names ...string) fleet.Capabilities { return names }
	for name, tt := range map[string]struct {
		source, target fleet.Capabilities
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

// What the instance can do that is to be sent counts, and not what is installed by
// now; of VMs that ran before records had that, the host's word has to do.
func TestSourceCapabilities(t *testing.T) {
	host := fleet.Host{QEMU: fleet.QEMUFeatures{Version: "10.0.2", Capabilities: fleet.Capabilities{"multifd", "switchover-ack"}}}
	for name, tt := range map[string]struct {
		qemu fleet.InstanceQEMU
		want fleet.Capabilities
	}{
		"an older one runs":    {qemu: fleet.InstanceQEMU{Version: "7.2.0", Capabilities: fleet.Capabilities{"multifd"}}, want: fleet.Capabilities{"multifd"}},
		"one without any runs": {qemu: fleet.InstanceQEMU{Version: "7.2.0"}},
		"an old record":        {want: host.QEMU.Capabilities},
	} {
		t.Run(name, func(t *testing.T) {
			if got := SourceCapabilities(fleet.VM{QEMU: tt.qemu}, host); !slices.Equal(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}
