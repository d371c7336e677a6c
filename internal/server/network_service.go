package server

import (
	"context"
	"fmt"
	"net/netip"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// Limits of networks.
const (
	defaultMTU = 1500
	minMTU     = 1280 // IPv6 needs as much (RFC 8200, section 5)
	maxMTU     = 65535 - 50
	maxSubnets = 16
	maxVLAN    = 4094 // IEEE 802.1Q, section 9.6
)

// networkService is the API of networks.
type networkService struct{ server *Server }

func (n networkService) Get(ctx context.Context, request *godwitv1.GetNetworkRequest) (*godwitv1.GetNetworkResponse, error) {
	entry, err := n.server.getNetwork(ctx, "show", request.GetName())
	if err != nil {
		return nil, err
	}
	return &godwitv1.GetNetworkResponse{Network: wire.EncodeNetwork(entry.Value, entry.Version)}, nil
}

func (n networkService) List(ctx context.Context, request *godwitv1.ListNetworksRequest) (*godwitv1.ListNetworksResponse, error) {
	entries, token, err := readPage(ctx, n.server.tables.networks, request.GetPage(), nil)
	if err != nil {
		return nil, err
	}
	response := &godwitv1.ListNetworksResponse{NextToken: token}
	for _, entry := range entries {
		response.Networks = append(response.Networks, wire.EncodeNetwork(entry.Value, entry.Version))
	}
	return response, nil
}

func (n networkService) Create(ctx context.Context, request *godwitv1.CreateNetworkRequest) (*godwitv1.CreateNetworkResponse, error) {
	t := n.server.tables
	network, _, err := wire.DecodeNetwork(request.GetNetwork())
	if err != nil {
		return nil, err
	}
	if network.MTU == 0 {
		network.MTU = defaultMTU
	}
	if found := validateNetwork(network); len(found) > 0 {
		return nil, &fleet.Error{Code: fleet.Invalid, Op: "create", Subject: "network " + string(network.Name),
			Cause: "the network is not valid", Fields: found}
	}
	return once(ctx, t, "create network", request, new(godwitv1.CreateNetworkResponse),
		func(response *godwitv1.CreateNetworkResponse, version int64) { response.Network.Version = version },
		func(r receipt) (*godwitv1.CreateNetworkResponse, int64, error) { return n.create(ctx, network, r) })
}

// create gives the answer without the network's version, and the version.
func (n networkService) create(ctx context.Context, network fleet.Network, r receipt) (*godwitv1.CreateNetworkResponse, int64, error) {
	t := n.server.tables
	name, chosen := string(network.Name), network.VNI == 0 && !network.Provider()
	for range store.MaxConflicts {
		err := n.checkFree(ctx, name)
		if err == nil && chosen {
			network.VNI, err = t.freeVNI(ctx)
		} else if err == nil {
			err = t.checkHolder(ctx, network)
		}
		if err != nil {
			return nil, 0, err
		}
		response := &godwitv1.CreateNetworkResponse{Network: wire.EncodeNetwork(network, 0)}
		free, kept, err := r.keep(response)
		if err != nil {
			return nil, 0, err
		}
		held, key := t.holderOf(network)
		ops := []store.Op{t.networks.Put(name, network), held.Put(key, networkHolder{Network: network.Name})}
		revision, err := t.store.Commit(ctx, append(free, t.networks.Absent(name), held.Absent(key)), append(ops, kept...)...)
		if fleet.CodeOf(err) != fleet.Conflict {
			return response, revision, err
		}
	}
	return nil, 0, tooManyConflicts("create", "network "+name)
}

func (n networkService) checkFree(ctx context.Context, name string) error {
	_, err := n.server.tables.networks.Get(ctx, name)
	switch fleet.CodeOf(err) {
	case fleet.NotFound:
		return nil
	case "":
		return &fleet.Error{Code: fleet.Exists, Op: "create", Subject: "network " + name, Cause: "there is a network of that name already"}
	}
	return err
}

// holderOf gives where it is recorded that a network has its VNI, or its VLAN of a
// bridge, to itself.
func (t tables) holderOf(network fleet.Network) (table store.Table[networkHolder], key string) {
	if network.Provider() {
		return t.vlans, vlanKey(network)
	}
	return t.vnis, vniKey(network.VNI)
}

// checkHolder refuses a network whose VNI, or VLAN of a bridge, another one has.
func (t tables) checkHolder(ctx context.Context, network fleet.Network) error {
	table, key := t.holderOf(network)
	holder, err := table.Get(ctx, key)
	switch fleet.CodeOf(err) {
	case fleet.NotFound:
		return nil
	case "":
	default:
		return err
	}
	taken := &fleet.Error{
		Code: fleet.Exists, Op: "create", Subject: "network " + string(network.Name),
		Cause: fmt.Sprintf("%s is that of network %s", network.Segment(), holder.Value.Network),
		Hint:  "choose another one, or none to let the server choose",
	}
	if network.Provider() {
		taken.Hint = "use that one, or choose another VLAN: addresses are unique in one network only"
	}
	return taken
}

// freeVNI gives the lowest VNI of networks that nobody has.
func (t tables) freeVNI(ctx context.Context) (uint32, error) {
	entries, _, err := t.vnis.All(ctx)
	if err != nil {
		return 0, err
	}
	taken := map[string]bool{}
	for _, entry := range entries {
		taken[entry.Name] = true
	}
	for vni := firstNetworkVNI; vni <= lastNetworkVNI; vni++ {
		if !taken[vniKey(vni)] {
			return vni, nil
		}
	}
	return 0, &fleet.Error{Code: fleet.Exhausted, Op: "choose VNI", Cause: "all VNIs are in use"}
}

// validateNetwork gives everything that is wrong with a new network.
func validateNetwork(network fleet.Network) findings {
	var found findings
	if err := fleet.CheckName(string(network.Name)); err != nil {
		found.add("name", "%v", err)
	}
	found.checkSegment(network)
	if network.MTU < minMTU || network.MTU > maxMTU {
		found.add("mtu", "is %d, must be between %d and %d", network.MTU, minMTU, maxMTU)
	}
	if len(network.Endpoints) > 0 {
		found.add("endpoints", "are attached once the network exists")
	}
	if len(network.Subnets) > maxSubnets {
		found.add("subnets", "are %d, at most %d are possible", len(network.Subnets), maxSubnets)
		return found
	}
	for i, subnet := range network.Subnets {
		found.checkSubnet(fmt.Sprintf("subnets[%d]", i), subnet, network.Subnets[:i])
	}
	return found
}

// checkSegment checks what carries the frames: a VNI, or a bridge and perhaps a VLAN.
func (f *findings) checkSegment(network fleet.Network) {
	switch {
	case network.Provider() && network.VNI != 0:
		f.add("vni", "is %d, and a network that is on a bridge has none: its frames are not in a tunnel", network.VNI)
	case network.VNI > lastNetworkVNI:
		f.add("vni", "is %d, must be between %d and %d", network.VNI, firstNetworkVNI, lastNetworkVNI)
	}
	if err := fleet.CheckDevice(network.Bridge); network.Provider() && err != nil {
		f.add("bridge", "%v", err)
	}
	switch {
	case network.VLAN > maxVLAN:
		f.add("vlan", "is %d, must be between 1 and %d, or 0 for none", network.VLAN, maxVLAN)
	case network.VLAN != 0 && !network.Provider():
		f.add("vlan", "is %d, and only a network that is on a bridge can be a VLAN", network.VLAN)
	}
}

func (f *findings) checkSubnet(field string, subnet netip.Prefix, before []netip.Prefix) {
	switch {
	case subnet != subnet.Masked():
		f.add(field, "%s has host bits: the subnet is %s", subnet, subnet.Masked())
	case subnet.Addr().IsMulticast() || subnet.Addr().IsLoopback() || subnet.Addr().Is4In6():
		f.add(field, "%s has no addresses that a port can have", subnet)
	}
	for i, other := range before {
		if subnet.Overlaps(other) {
			f.add(field, "%s overlaps with subnets[%d], %s", subnet, i, other)
		}
	}
}

// Delete removes a network that nobody has an address in.
func (n networkService) Delete(ctx context.Context, request *godwitv1.DeleteNetworkRequest) (*godwitv1.DeleteNetworkResponse, error) {
	t := n.server.tables
	for range store.MaxConflicts {
		entry, err := n.server.getNetwork(ctx, "delete", request.GetName())
		if err != nil {
			return nil, err
		}
		if err := checkVersion("delete", "network", entry, request.GetVersion()); err != nil {
			return nil, err
		}
		taken, err := t.takenAddresses(ctx, entry.Value.Name)
		if err != nil {
			return nil, err
		}
		if len(taken) > 0 {
			return nil, inUse(entry.Name, taken)
		}
		held, key := t.holderOf(entry.Value)
		// Whoever takes an address puts the network, too, so that its version
		// says that nobody has come since.
		_, err = t.store.Commit(ctx, store.If(t.networks.At(entry.Name, entry.Version)),
			t.networks.Delete(entry.Name), held.Delete(key))
		if fleet.CodeOf(err) != fleet.Conflict {
			return &godwitv1.DeleteNetworkResponse{}, err
		}
	}
	return nil, tooManyConflicts("delete", "network "+request.GetName())
}
