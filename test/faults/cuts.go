package main

import (
	"errors"
	"fmt"
	"slices"

	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/fleetlab"
)

// Hosts of the lab: VMs go from the source to the target, and the client is at
// a third.
const (
	sourceHost  = "h1"
	targetHost  = "h2"
	clientHost  = "h3"
	controlHost = "control"
	storageHost = "v1" // the volume server
)

// controlHosts gives the hosts of the control plane from one number to another.
func controlHosts(from, to int) (names []string) {
	for i := from; i < to; i++ {
		name := controlHost
		if i > 0 {
			name = fmt.Sprintf("%s%d", controlHost, i+1)
		}
		names = append(names, name)
	}
	return names
}

// direction is one way of a path between two hosts.
type direction struct {
	from, to string
	traffic  lab.Traffic
}

func (d direction) back() direction { return direction{d.to, d.from, d.traffic} }

// between gives the ways from some hosts to others.
func between(from, to []string, traffic lab.Traffic) (all []direction) {
	for _, one := range from {
		for _, other := range to {
			all = append(all, direction{one, other, traffic})
		}
	}
	return all
}

// paths are what a cut of a victim cuts: the way that a one-way cut takes, of
// each path. For what sends, that is what it sends. Between two hosts, TCP is
// QEMU's stream alone.
func (p plane) paths(v victim) []direction {
	source, target := []string{sourceHost}, []string{targetHost}
	servers, others := controlHosts(0, p.servers), controlHosts(p.servers, p.members)
	hosts := []string{sourceHost, targetHost, clientHost}
	switch v {
	case sourceQEMU:
		return between(source, target, lab.TCPTraffic)
	case targetQEMU:
		return between(target, source, lab.TCPTraffic)
	case sourceAgent:
		return between(source, servers, lab.AllTraffic)
	case targetAgent:
		return between(target, servers, lab.AllTraffic)
	case serverLeader:
		rest := slices.Concat(controlHosts(0, p.leader), controlHosts(p.leader+1, max(p.servers, p.members)), hosts)
		return between(controlHosts(p.leader, p.leader+1), rest, lab.AllTraffic)
	case allServers:
		return between(servers, append(others, hosts...), lab.AllTraffic)
	case etcdMember:
		others := slices.Concat(controlHosts(0, p.first), controlHosts(p.first+1, p.members))
		return between(controlHosts(p.first, p.first+1), others, lab.AllTraffic)
	case etcdQuorum:
		rest := p.survivors()
		return between(controlHosts(rest, p.members), controlHosts(0, rest), lab.AllTraffic)
	case hostLink:
		return between(source, target, lab.AllTraffic)
	case serverLink:
		return between(servers, append(source, targetHost), lab.AllTraffic)
	case volumeServer:
		return between([]string{storageHost}, append(servers, sourceHost, targetHost), lab.AllTraffic)
	case volumeLink:
		return between([]string{storageHost}, append(source, targetHost), lab.AllTraffic)
	}
	return nil
}

// survivors is how many members of etcd are left when it has just lost its
// quorum.
func (s size) survivors() int { return s.members / 2 }

// cut cuts the paths of a victim, and gives what heals them.
func cut(f *fleetlab.Fleet, p plane, c cell) (heal func() error, err error) {
	directions := p.paths(c.Victim)
	if c.Fault == twoWay {
		for _, one := range directions {
			directions = append(directions, one.back())
		}
	}
	return cutAll(f, directions)
}

// cutAll cuts some ways, and gives what heals them all.
func cutAll(f *fleetlab.Fleet, directions []direction) (heal func() error, err error) {
	var cuts []*lab.Cut
	heal = func() error {
		var errs []error
		for _, one := range cuts {
			errs = append(errs, one.Heal())
		}
		return errors.Join(errs...)
	}
	for _, one := range directions {
		made, err := f.Lab.Cut(one.from, one.to, one.traffic)
		if err != nil {
			return nil, errors.Join(err, heal())
		}
		cuts = append(cuts, made)
	}
	return heal, nil
}
