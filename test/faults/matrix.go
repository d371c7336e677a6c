package main

import (
	"fmt"
	"slices"
)

type fault string

const (
	sigkill fault = "SIGKILL"
	sigstop fault = "SIGSTOP"
	oneWay  fault = "one-way"
	twoWay  fault = "two-way"
	restart fault = "restart"
)

type victim string

const (
	sourceQEMU   victim = "source-qemu"
	targetQEMU   victim = "target-qemu"
	sourceAgent  victim = "source-agent"
	targetAgent  victim = "target-agent"
	serverLeader victim = "server-leader"
	allServers   victim = "all-servers"
	etcdMember   victim = "etcd-member" // the one that leads
	etcdQuorum   victim = "etcd-quorum"
	hostLink     victim = "host-link"   // between source and target
	serverLink   victim = "server-link" // between the servers and both hosts
	volumeServer victim = "volume-server"
	volumeLink   victim = "volume-link" // between the volume server and both hosts
)

type state string

const (
	preparing    state = "preparing"
	copying      state = "copying"
	beforeCommit state = "before-commit" // Switching
	afterCommit  state = "after-commit"  // committed, and the target does not know it yet
	settling     state = "settling"      // the target runs
)

var (
	faults  = []fault{sigkill, sigstop, oneWay, twoWay, restart}
	victims = []victim{sourceQEMU, targetQEMU, sourceAgent, targetAgent, serverLeader, allServers, etcdMember, etcdQuorum, hostLink, serverLink, volumeServer, volumeLink}
	states  = []state{preparing, copying, beforeCommit, afterCommit, settling}
)

// cell is one fault to one victim in one state.
type cell struct {
	Fault  fault  `json:"fault"`
	Victim victim `json:"victim"`
	State  state  `json:"state"`
}

func (c cell) String() string { return fmt.Sprintf("%s %s %s", c.Fault, c.Victim, c.State) }

// matrix gives the cells of some faults, victims and states, by state and then
// by victim.
func matrix(faults []fault, victims []victim, states []state) (cells []cell) {
	for _, s := range states {
		for _, v := range victims {
			for _, f := range faults {
				cells = append(cells, cell{f, v, s})
			}
		}
	}
	return cells
}

func (f fault) cuts() bool { return f == oneWay || f == twoWay }

func (v victim) isQEMU() bool { return v == sourceQEMU || v == targetQEMU }

func (v victim) isAgent() bool { return v == sourceAgent || v == targetAgent }

func (v victim) isLink() bool { return v == hostLink || v == serverLink || v == volumeLink }

func (v victim) isVolume() bool { return v == volumeServer || v == volumeLink }

// size is how many servers and members of etcd a lab has. The first of each
// share a host, and so on.
type size struct{ servers, members int }

// plane is the control plane of a lab at the moment.
type plane struct {
	size
	leader int // which server leads, from 0
	first  int // which member of etcd does
}

// lacks says why a lab of some size cannot run a cell, or nothing.
func (c cell) lacks(lab size) string {
	switch {
	case c.Victim.isLink() && !c.Fault.cuts():
		return "impossible: a link has no process"
	case c.Victim.isQEMU() && c.Fault == restart:
		return "impossible: a QEMU that has ended has lost the guest's memory, so nothing starts it again; SIGKILL is this cell"
	case c.Victim.isQEMU() && c.Fault.cuts() && (c.State == afterCommit || c.State == settling):
		return "impossible: QEMU has no connection any more when the target has loaded everything"
	case c.Victim == targetQEMU && c.Fault == twoWay:
		return "the same cut as " + cell{twoWay, sourceQEMU, c.State}.String()
	case c.Victim == serverLeader && lab.servers == 1:
		return "not in this lab: its fleet has one server, which all-servers is"
	case c.Victim == allServers && c.Fault.cuts() && lab.members <= lab.servers:
		return "the same cut as " + cell{c.Fault, serverLink, c.State}.String() + ": all of etcd is on the hosts of the servers"
	case c.Victim == etcdMember && lab.members < 3:
		return "not in this lab: its etcd can lose no member, so this is etcd-quorum"
	case c.Victim == etcdQuorum && c.Fault.cuts() && lab.members < 2:
		return "not in this lab: etcd is on the host of the server, with no link between"
	}
	return ""
}

// needsSource: the fault is to meet a source's QEMU that is to be ended at once.
func (c cell) needsSource() bool { return c.Victim == sourceQEMU && c.State == settling }

// killsOwner: the fault ends the QEMU that runs the VM, or is about to.
func (c cell) killsOwner() bool {
	return c.Fault == sigkill && c.holdsGuest()
}

// hangsOwner: the fault itself stops the guest for its time.
func (c cell) hangsOwner() bool {
	return c.Fault == sigstop && c.holdsGuest()
}

// holdsGuest: the victim is the QEMU that has the right to run the VM.
func (c cell) holdsGuest() bool {
	committed := c.State == afterCommit || c.State == settling
	return c.Victim == sourceQEMU && !committed || c.Victim == targetQEMU && committed
}

// cutsFrames: frames for the guest are on the link that is cut, as they are
// sent on from the source to the target, or back.
func (c cell) cutsFrames() bool {
	return c.Victim == hostLink && slices.Contains([]state{beforeCommit, afterCommit, settling}, c.State)
}
