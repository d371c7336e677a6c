package main

import (
	"fmt"
	"strings"

	"godwit.dev/godwit/internal/lab/fleetlab"
)

// leads is what a server writes when it begins to lead.
const leads = `msg="this server leads"`

// planeOf looks at the control plane, and has the lab's own questions go to a
// server that the cell leaves alone, if there is one.
func planeOf(f *fleetlab.Fleet) (plane, error) {
	p, err := lookAtPlane(f)
	if err == nil && p.servers > 1 {
		f.API = f.APIOf((p.leader + 1) % p.servers)
	}
	return p, err
}

// lookAtPlane looks at the control plane. A server is asked for nothing: who
// leads is the last that has said so in its log.
func lookAtPlane(f *fleetlab.Fleet) (plane, error) {
	p := plane{size: size{len(f.Servers()), len(f.Etcds())}}
	if p.servers == 1 {
		return p, nil
	}
	latest := ""
	for i, server := range f.Servers() {
		text, err := server.Log()
		if err != nil {
			return p, err
		}
		if at := lastSaid(text); at > latest {
			latest, p.leader = at, i
		}
	}
	if latest == "" {
		return p, fmt.Errorf("no server has said that it leads")
	}
	return p, nil
}

// lastSaid gives the time of the last line that says that its server leads, as
// text that can be compared.
func lastSaid(log string) (at string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, leads) {
			at, _, _ = strings.Cut(line, " ")
		}
	}
	return at
}
