package main

import (
	"fmt"
	"strings"

	"godwit.dev/godwit/internal/lab/fleetlab"
)

// What a server, and a member of etcd, write when they begin to lead.
const (
	leads       = `msg="this server leads"`
	memberLeads = "this member leads"
)

// planeOf looks at the control plane, and has the lab's own questions go to a
// server that the cell leaves alone, if there is one.
func planeOf(f *fleetlab.Fleet) (plane, error) {
	p, err := lookAtPlane(f)
	if err == nil && p.servers > 1 {
		f.API = f.APIOf(p.bystander())
	}
	return p, err
}

// bystander is a server that neither leads nor shares a host with the member of
// etcd that does, if there is one.
func (p plane) bystander() int {
	for i := range p.servers {
		if i != p.leader && i != p.first {
			return i
		}
	}
	return (p.leader + 1) % p.servers
}

// lookAtPlane looks at the control plane. Nobody is asked for anything: who
// leads is the last that has said so in its log.
func lookAtPlane(f *fleetlab.Fleet) (p plane, err error) {
	p.size = size{len(f.Servers()), len(f.Etcds())}
	if p.servers > 1 {
		if p.leader, err = lastOf(f.Servers(), leads); err != nil {
			return p, err
		}
	}
	if p.members > 1 {
		p.first, err = lastOf(f.Etcds(), memberLeads)
	}
	return p, err
}

// lastOf gives the process that was the last to say something in its log.
func lastOf(all []*fleetlab.Process, words string) (last int, err error) {
	latest := ""
	for i, one := range all {
		text, err := one.Log()
		if err != nil {
			return 0, err
		}
		if at := lastSaid(text, words); at > latest {
			latest, last = at, i
		}
	}
	if latest == "" {
		return 0, fmt.Errorf("none of %d programs has said %s", len(all), words)
	}
	return last, nil
}

// lastSaid gives the time of the last line that says something, as text that can
// be compared.
func lastSaid(log, words string) (at string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, words) {
			at, _, _ = strings.Cut(line, " ")
		}
	}
	return at
}
