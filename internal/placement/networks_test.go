package placement

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"godwit.dev/godwit/internal/fleet"
)

var testNetworks = map[fleet.NetworkName]fleet.Network{
	"blue":   {Name: "blue", VNI: 1, MTU: 1500},
	"prod":   {Name: "prod", Bridge: "br0", MTU: 1500},
	"office": {Name: "office", Bridge: "br0", VLAN: 100, MTU: 1500},
	"jumbo":  {Name: "jumbo", Bridge: "br1", VLAN: 7, MTU: 9000},
}

// with asks for a host for a VM with ports in networks.
func with(names ...fleet.NetworkName) Request {
	request := Request{VM: smallVM()}
	for _, name := range names {
		request.VM.Spec.Ports = append(request.VM.Spec.Ports, fleet.Port{Network: name})
		request.Networks = append(request.Networks, testNetworks[name])
	}
	return request
}

func bridges(bridges ...fleet.Bridge) func(*Candidate) {
	return func(c *Candidate) { c.Host.Networks.Bridges = bridges }
}

func underlay(mtu int) func(*Candidate) {
	return func(c *Candidate) { c.Host.Networks.UnderlayMTU = mtu }
}

func ipv6(c *Candidate) { c.Host.Address = netip.MustParseAddr("2001:db8::1") }

func TestBridgesOfHosts(t *testing.T) {
	plain, filtering := fleet.Bridge{Name: "br0", MTU: 1500}, fleet.Bridge{Name: "br0", MTU: 1500, FiltersVLANs: true}
	small := fleet.Bridge{Name: "br1", MTU: 1500}
	cases := []struct {
		name    string
		host    func(*Candidate)
		request Request
		want    []string
	}{
		{"an overlay needs none", bridges(), with("blue"), nil},
		{"no bridges", bridges(), with("prod"), []string{"it has no bridge br0, which network prod is on"}},
		{"another bridge", bridges(small), with("prod"), []string{"it has no bridge br0, which network prod is on"}},
		{"the bridge", bridges(small, plain), with("prod"), nil},
		{"one that filters, without a VLAN", bridges(filtering), with("prod"), nil},
		{"a VLAN", bridges(filtering), with("office"), nil},
		{"a VLAN where none are", bridges(plain), with("office"), []string{"its bridge br0 does not filter VLANs, network office is VLAN 100 of it"}},
		{"both are told", bridges(small), with("jumbo"), []string{
			"its bridge br1 has an MTU of 1500, network jumbo needs 9000", "its bridge br1 does not filter VLANs, network jumbo is VLAN 7 of it"}},
		{"a larger MTU", bridges(fleet.Bridge{Name: "br0", MTU: 9000}), with("prod"), nil},
		{"every network", bridges(plain), with("office", "prod", "jumbo"), []string{
			"its bridge br0 does not filter VLANs, network office is VLAN 100 of it", "it has no bridge br1, which network jumbo is on"}},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			for _, source := range []fleet.HostName{"", "b"} {
				hosts := []Candidate{candidate("a", test.host), candidate("b", bridges(filtering), func(c *Candidate) { c.Host.Cordoned = true })}
				request := test.request
				request.Source = source
				result, err := Choose(Snapshot{Hosts: hosts}, request)
				if test.want == nil {
					if err != nil || result.Host != "a" {
						t.Errorf("from %q: got %+v, %v", source, result, err)
					}
					continue
				}
				if fleet.CodeOf(err) != fleet.NoFit || !slices.Equal(result.Refused[0].Why, test.want) {
					t.Errorf("from %q: %v; refused %+v, want %q", source, err, result.Refused, test.want)
				}
				if !strings.Contains(fleet.HintOf(err), "godwit host show") {
					t.Errorf("hint %q", fleet.HintOf(err))
				}
			}
		})
	}
}

func TestNamedHostWithoutTheBridge(t *testing.T) {
	hosts := []Candidate{candidate("a", bridges()), candidate("b", bridges(fleet.Bridge{Name: "br0", MTU: 1500}))}
	request := with("prod")
	request.Want = "a"
	_, err := Choose(Snapshot{Hosts: hosts}, request)
	if err == nil || !strings.Contains(err.Error(), "host a cannot take it: it has no bridge br0") || !strings.Contains(fleet.HintOf(err), "godwit host show") {
		t.Errorf("%v, hint %q", err, fleet.HintOf(err))
	}
	request.Want = ""
	if result, err := Choose(Snapshot{Hosts: hosts}, request); err != nil || result.Host != "b" {
		t.Errorf("got %+v, %v; want the host that has it", result, err)
	}
	hosts[1].Host.Cordoned = true
	if _, err := Choose(Snapshot{Hosts: hosts[1:]}, request); strings.Contains(fleet.HintOf(err), "bridge") {
		t.Errorf("it is cordoned, and the hint %q speaks of bridges", fleet.HintOf(err))
	}
}

// A migration does not have packets fragmented that were not, or more than they were.
func TestUnderlayOfTheTarget(t *testing.T) {
	cases := []struct {
		name           string
		source, target int
		edit           func(*Candidate)
		request        Request
		want           []string
	}{
		{"as large as needed", 9000, 1550, nil, with("blue"), nil},
		{"too small", 1600, 1549, nil, with("blue"), []string{"its MTU to other hosts is 1549, network blue needs 1550, and host b has 1600"}},
		{"IPv6 needs more", 1600, 1569, ipv6, with("blue"), []string{"its MTU to other hosts is 1569, network blue needs 1570, and host b has 1600"}},
		{"as large as IPv6 needs", 1600, 1570, ipv6, with("blue"), nil},
		{"as small as the source's", 1400, 1400, nil, with("blue"), nil},
		{"larger than the source's", 1400, 1500, nil, with("blue"), nil},
		{"smaller still", 1500, 1400, nil, with("blue"), []string{"its MTU to other hosts is 1400, network blue needs 1550, and host b has 1500"}},
		{"not known", 1600, 0, nil, with("blue"), nil},
		{"the source's is not known", 0, 1400, nil, with("blue"), nil},
		{"no overlay", 9000, 1400, bridges(fleet.Bridge{Name: "br0", MTU: 1500}), with("prod"), nil},
		{"no port", 9000, 1400, nil, with(), nil},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			target := candidate("a", underlay(test.target))
			if test.edit != nil {
				test.edit(&target)
			}
			snapshot := Snapshot{Hosts: []Candidate{target, candidate("b", underlay(test.source))}}
			for _, want := range []fleet.HostName{"", "a"} {
				request := test.request
				request.Source, request.Want = "b", want
				result, err := Choose(snapshot, request)
				if test.want == nil {
					if err != nil || result.Host != "a" {
						t.Errorf("to %q: got %+v, %v", want, result, err)
					}
					continue
				}
				if fleet.CodeOf(err) != fleet.NoFit || !slices.Equal(result.Refused[0].Why, test.want) {
					t.Errorf("to %q: %v; refused %+v, want %q", want, err, result.Refused, test.want)
				}
			}
			start := test.request
			start.Want = "a"
			if _, err := Choose(snapshot, start); err != nil {
				t.Errorf("a start is refused: %v", err)
			}
		})
	}
}

// A host that has room is refused for its networks if and only if carries, written apart
// from what decides that, says that it does not.
func TestNetworkProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var hosts []Candidate
		for _, name := range []string{"h0", "h1", "h2"} {
			hosts = append(hosts, candidate(name, underlay(rapid.SampledFrom([]int{0, 1400, 1500, 1550, 9000}).Draw(t, "underlay"))))
			for _, bridge := range []string{"br0", "br1"} {
				if rapid.IntRange(0, 3).Draw(t, bridge) > 0 {
					bridges(append(hosts[len(hosts)-1].Host.Networks.Bridges, fleet.Bridge{
						Name: bridge, MTU: rapid.SampledFrom([]int{1400, 1500, 9000}).Draw(t, "mtu"), FiltersVLANs: rapid.Bool().Draw(t, "filters"),
					})...)(&hosts[len(hosts)-1])
				}
			}
		}
		names := rapid.SliceOfNDistinct(rapid.SampledFrom(slices.Sorted(maps.Keys(testNetworks))), 0, 2, rapid.ID).Draw(t, "networks")
		source := rapid.SampledFrom([]fleet.HostName{"", "h0"}).Draw(t, "source")
		request := with(names...)
		request.Source = source
		result, _ := Choose(Snapshot{Hosts: hosts}, request)
		for _, c := range hosts {
			ranked := slices.ContainsFunc(result.Ranked, func(r Ranked) bool { return r.Host == c.Host.Name })
			want := c.Host.Name != source
			for _, name := range names {
				want = want && carries(c.Host.Networks, testNetworks[name], source != "", hosts[0].Host.Networks)
			}
			if ranked != want {
				t.Fatalf("%s is taken: %v, want %v; %v of %+v, from %q with %+v", c.Host.Name, ranked, want, names, c.Host.Networks, source, hosts[0].Host.Networks)
			}
		}
	})
}

func carries(host fleet.HostNetworks, network fleet.Network, moves bool, source fleet.HostNetworks) bool {
	if network.Bridge != "" {
		return slices.ContainsFunc(host.Bridges, func(b fleet.Bridge) bool {
			return b.Name == network.Bridge && b.MTU >= network.MTU && (network.VLAN == 0 || b.FiltersVLANs)
		})
	}
	fragments := host.UnderlayMTU != 0 && host.UnderlayMTU < network.MTU+50
	return !moves || !fragments || source.UnderlayMTU <= host.UnderlayMTU
}
