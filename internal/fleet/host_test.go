package fleet

import (
	"encoding/json"
	"reflect"
	"testing"
)

// Records from before there were provider networks are read, and what they hold is
// written as it was.
func TestRecordsFromBeforeProviderNetworks(t *testing.T) {
	const before = `{"name":"blue","vni":7,"mtu":1500,"subnets":["10.20.0.0/24"]}`
	var network Network
	if err := json.Unmarshal([]byte(before), &network); err != nil {
		t.Fatal(err)
	}
	if network.VNI != 7 || network.MTU != 1500 || len(network.Subnets) != 1 || network.Provider() {
		t.Errorf("read as %+v", network)
	}
	if after, err := json.Marshal(network); err != nil || string(after) != before {
		t.Errorf("written as %s, %v", after, err)
	}
	var host Host
	if err := json.Unmarshal([]byte(`{"name":"h1","address":"10.0.0.1","cpus":8,"memory":"8GiB","bootId":"b"}`), &host); err != nil {
		t.Fatal(err)
	}
	if host.CPUs != 8 || !host.Networks.Equal(HostNetworks{}) {
		t.Errorf("read as %+v", host)
	}
}

func TestSegments(t *testing.T) {
	for want, network := range map[string]Network{
		"VNI 7": {VNI: 7}, "bridge br0": {Bridge: "br0"}, "VLAN 100 of bridge br0": {Bridge: "br0", VLAN: 100},
	} {
		if is := network.Segment(); is != want {
			t.Errorf("%+v is %q, not %q", network, is, want)
		}
	}
}

func TestNetworksOfHostsAreKept(t *testing.T) {
	networks := HostNetworks{UnderlayMTU: 1600, Bridges: []Bridge{{Name: "br0", MTU: 1500}, {Name: "br1", MTU: 9000, FiltersVLANs: true}}}
	text, err := json.Marshal(Host{Name: "h1", Networks: networks})
	if err != nil {
		t.Fatal(err)
	}
	var again Host
	if err := json.Unmarshal(text, &again); err != nil || !reflect.DeepEqual(again.Networks, networks) {
		t.Errorf("%s is read as %+v, %v", text, again.Networks, err)
	}
	if bridge, has := again.Networks.Bridge("br1"); !has || !bridge.FiltersVLANs {
		t.Errorf("br1 is %+v, %v", bridge, has)
	}
	if bridge, has := again.Networks.Bridge("br2"); has {
		t.Errorf("br2 is %+v", bridge)
	}
	for _, other := range []HostNetworks{{}, {Bridges: networks.Bridges}, {UnderlayMTU: 1600, Bridges: networks.Bridges[:1]}} {
		if networks.Equal(other) {
			t.Errorf("%+v is the same as %+v", networks, other)
		}
	}
}
