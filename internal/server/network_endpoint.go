package server

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

const (
	maxEndpoints = 256 // of one network
	// namedUsers is how many users of a network an error names.
	namedUsers = 5
)

// inUse says who keeps a network from being deleted.
func inUse(network string, taken map[string]addressHolder) error {
	users := map[string]bool{}
	for _, holder := range taken {
		users[holder.String()] = true
	}
	names := slices.Sorted(maps.Keys(users))
	more := ""
	if len(names) > namedUsers {
		more = fmt.Sprintf(" and %d more", len(names)-namedUsers)
		names = names[:namedUsers]
	}
	return &fleet.Error{
		Code: fleet.Conflict, Op: "delete", Subject: "network " + network,
		Cause: "it is used by " + strings.Join(names, ", ") + more,
		Hint:  "delete those VMs and detach those endpoints first",
	}
}

// Attach makes an interface of a host part of a network. A MAC that is not
// given is chosen; IP addresses are not.
func (n networkService) Attach(ctx context.Context, request *godwitv1.AttachEndpointRequest) (*godwitv1.AttachEndpointResponse, error) {
	endpoint, err := wire.DecodeEndpoint(request.GetEndpoint())
	if err != nil {
		return nil, err
	}
	endpoint.MAC = strings.ToLower(endpoint.MAC)
	return once(ctx, n.server.tables, "attach endpoint", request, new(godwitv1.AttachEndpointResponse),
		func(response *godwitv1.AttachEndpointResponse, version int64) { response.Network.Version = version },
		func(r receipt) (*godwitv1.AttachEndpointResponse, int64, error) {
			return n.attach(ctx, request, endpoint, r)
		})
}

// attach gives the answer without the network's version, and the version.
func (n networkService) attach(ctx context.Context, request *godwitv1.AttachEndpointRequest, endpoint fleet.Endpoint, r receipt) (*godwitv1.AttachEndpointResponse, int64, error) {
	t := n.server.tables
	for range store.MaxConflicts {
		entry, err := n.server.getNetwork(ctx, "attach endpoint to", request.GetNetwork())
		if err != nil {
			return nil, 0, err
		}
		if err := checkVersion("attach endpoint to", "network", entry, request.GetVersion()); err != nil {
			return nil, 0, err
		}
		if entry.Value.Provider() {
			return nil, 0, onBridge(entry.Value, endpoint)
		}
		if _, err := n.server.getHost(ctx, "attach endpoint of", string(endpoint.Host)); err != nil {
			return nil, 0, err
		}
		taken, err := t.takenAddresses(ctx, entry.Value.Name)
		if err != nil {
			return nil, 0, err
		}
		attached := endpoint
		if attached.MAC == "" {
			attached.MAC = newMAC(taken)
		}
		if found := validateEndpoint(attached, entry.Value, taken); len(found) > 0 {
			return nil, 0, &fleet.Error{Code: fleet.Invalid, Op: "attach endpoint " + endpoint.Name + " to", Subject: "network " + entry.Name,
				Cause: "the endpoint is not valid", Fields: found}
		}
		entry.Value.Endpoints = append(slices.Clone(entry.Value.Endpoints), attached)
		response := &godwitv1.AttachEndpointResponse{Network: wire.EncodeNetwork(entry.Value, 0)}
		free, kept, err := r.keep(response)
		if err != nil {
			return nil, 0, err
		}
		conditions := append(free, t.networks.At(entry.Name, entry.Version))
		ops := append([]store.Op{t.networks.Put(entry.Name, entry.Value)}, kept...)
		for _, key := range endpointKeys(entry.Value.Name, attached) {
			conditions = append(conditions, t.addresses.Absent(key))
			ops = append(ops, t.addresses.Put(key, addressHolder{Endpoint: attached.Name}))
		}
		revision, err := t.store.Commit(ctx, conditions, ops...)
		if fleet.CodeOf(err) != fleet.Conflict {
			return response, revision, err
		}
	}
	return nil, 0, tooManyConflicts("attach endpoint to", "network "+request.GetNetwork())
}

// onBridge refuses an endpoint of a provider network.
func onBridge(network fleet.Network, endpoint fleet.Endpoint) error {
	return &fleet.Error{
		Code: fleet.Invalid, Op: "attach endpoint " + endpoint.Name + " to", Subject: "network " + string(network.Name),
		Cause: fmt.Sprintf("it is %s, which is not Godwit's, and who else is in it Godwit need not know", network.Segment()),
		Hint:  fmt.Sprintf("join the interface to the bridge itself, on host %s: ip link set %s master %s", endpoint.Host, endpoint.Device, network.Bridge),
	}
}

func endpointKeys(network fleet.NetworkName, endpoint fleet.Endpoint) []string {
	return addressKeysOf(fleet.VMSpec{Ports: []fleet.Port{{Network: network, MAC: endpoint.MAC, IPs: endpoint.IPs}}})
}

// validateEndpoint gives everything that is wrong with a new endpoint.
func validateEndpoint(endpoint fleet.Endpoint, network fleet.Network, taken map[string]addressHolder) findings {
	var found findings
	if err := fleet.CheckName(endpoint.Name); err != nil {
		found.add("name", "%v", err)
	}
	if len(network.Endpoints) >= maxEndpoints {
		found.add("name", "the network has %d endpoints already, which is the most", len(network.Endpoints))
	}
	for _, other := range network.Endpoints {
		if other.Name == endpoint.Name {
			found.add("name", "the network has an endpoint %q already", endpoint.Name)
		}
		if other.Host == endpoint.Host && other.Device == endpoint.Device {
			found.add("device", "%q of host %s is endpoint %s already", endpoint.Device, endpoint.Host, other.Name)
		}
	}
	if err := fleet.CheckDevice(endpoint.Device); err != nil {
		found.add("device", "%v", err)
	}
	found.checkMAC("mac", endpoint.MAC)
	for i, ip := range endpoint.IPs {
		found.checkIP(fmt.Sprintf("ips[%d]", i), ip, network)
	}
	if len(endpoint.IPs) > maxIPs {
		found.add("ips", "are %d, at most %d are possible", len(endpoint.IPs), maxIPs)
	}
	if other, used := taken[endpoint.MAC]; used {
		found.add("mac", "%s is taken by %v", endpoint.MAC, other)
	}
	seen := map[string]int{}
	for i, ip := range endpoint.IPs {
		if other, used := taken[ip.String()]; used {
			found.add(fmt.Sprintf("ips[%d]", i), "%s is taken by %v", ip, other)
		}
		if first, twice := seen[ip.String()]; twice {
			found.add(fmt.Sprintf("ips[%d]", i), "is that of ips[%d] too", first)
		}
		seen[ip.String()] = i
	}
	return found
}

// Detach takes an endpoint out of a network and frees its addresses.
func (n networkService) Detach(ctx context.Context, request *godwitv1.DetachEndpointRequest) (*godwitv1.DetachEndpointResponse, error) {
	t := n.server.tables
	for range store.MaxConflicts {
		entry, err := n.server.getNetwork(ctx, "detach endpoint from", request.GetNetwork())
		if err != nil {
			return nil, err
		}
		if err := checkVersion("detach endpoint from", "network", entry, request.GetVersion()); err != nil {
			return nil, err
		}
		at := slices.IndexFunc(entry.Value.Endpoints, func(e fleet.Endpoint) bool { return e.Name == request.GetEndpoint() })
		if at < 0 {
			return nil, &fleet.Error{Code: fleet.NotFound, Op: "detach endpoint from", Subject: "network " + entry.Name,
				Cause: fmt.Sprintf("it has no endpoint %q", request.GetEndpoint())}
		}
		var ops []store.Op
		for _, key := range endpointKeys(entry.Value.Name, entry.Value.Endpoints[at]) {
			ops = append(ops, t.addresses.Delete(key))
		}
		entry.Value.Endpoints = slices.Delete(slices.Clone(entry.Value.Endpoints), at, at+1)
		ops = append(ops, t.networks.Put(entry.Name, entry.Value))
		revision, err := t.store.Commit(ctx, store.If(t.networks.At(entry.Name, entry.Version)), ops...)
		if fleet.CodeOf(err) == fleet.Conflict {
			continue
		}
		return &godwitv1.DetachEndpointResponse{Network: wire.EncodeNetwork(entry.Value, revision)}, err
	}
	return nil, tooManyConflicts("detach endpoint from", "network "+request.GetNetwork())
}
