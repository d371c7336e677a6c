package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"godwit.dev/godwit/internal/fleet"
)

// Candidate is one host as the snapshot saw it.
type Candidate struct {
	Host   fleet.Host
	Ledger fleet.Ledger
	Up     bool // its agent has a session
}

// Snapshot is all that a decision depends on besides the request. The order of
// its hosts does not matter.
type Snapshot struct {
	Hosts []Candidate
}

// Request asks for a host for a VM.
type Request struct {
	VM fleet.VM
	// Source, if set, is where the VM is now; it is never chosen.
	Source fleet.HostName
	// Want, if set, is the only host considered, under the same conditions.
	Want fleet.HostName
	// Networks are those of the VM's ports, each once.
	Networks []fleet.Network
}

// Result is the decision with all that led to it.
type Result struct {
	Host    fleet.HostName
	Score   float64 // 0 to 100, higher is better
	Why     string
	Ranked  []Ranked  // every host that fits, best first
	Refused []Refusal // every host that does not, by name
}

// Ranked is a host that fits.
type Ranked struct {
	Host  fleet.HostName
	Score float64
	Why   string
}

// Refusal is a host that does not fit, with every reason.
type Refusal struct {
	Host fleet.HostName
	Why  []string
}

// Choose gives the best host for the request. Where none fits, the error has
// the code NoFit and one field for each host and reason; the result then still
// holds the refusals. A Want that is not in the snapshot is NotFound.
func Choose(snapshot Snapshot, request Request) (Result, error) {
	considered, err := consider(snapshot, request)
	if err != nil {
		return Result{}, err
	}
	var result Result
	source, _ := snapshot.host(request.Source) // a start has none
	byBridge := false
	for _, candidate := range considered {
		bridges := refuseBridges(candidate.Host.Networks, request.Networks)
		why := slices.Concat(refuse(candidate, request), bridges, refuseUnderlay(candidate.Host, source.Host, request.Networks))
		if len(why) > 0 {
			result.Refused = append(result.Refused, Refusal{Host: candidate.Host.Name, Why: why})
			byBridge = byBridge || len(bridges) > 0
			continue
		}
		result.Ranked = append(result.Ranked, rank(candidate, request.VM))
	}
	slices.SortFunc(result.Refused, func(a, b Refusal) int { return cmp.Compare(a.Host, b.Host) })
	slices.SortFunc(result.Ranked, func(a, b Ranked) int {
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(a.Host, b.Host))
	})
	if len(result.Ranked) == 0 {
		return result, noFit(request, result.Refused, byBridge)
	}
	best := result.Ranked[0]
	result.Host, result.Score, result.Why = best.Host, best.Score, best.Why
	return result, nil
}

// host finds a host by its name.
func (s Snapshot) host(name fleet.HostName) (Candidate, bool) {
	at := slices.IndexFunc(s.Hosts, func(c Candidate) bool { return c.Host.Name == name })
	if at < 0 {
		return Candidate{}, false
	}
	return s.Hosts[at], true
}

func consider(snapshot Snapshot, request Request) ([]Candidate, error) {
	if request.Want == "" {
		return snapshot.Hosts, nil
	}
	if candidate, ok := snapshot.host(request.Want); ok {
		return []Candidate{candidate}, nil
	}
	return nil, &fleet.Error{
		Code: fleet.NotFound, Op: "place", Subject: "vm " + string(request.VM.Name),
		Cause: fmt.Sprintf("there is no host %q", request.Want),
		Hint:  "godwit host list shows the hosts",
	}
}

// rank scores a host that fits: mostly the share of its memory that stays free
// with the VM on it, and a little for having few VMs, so that of two hosts
// alike the one with fewer neighbours gets it.
func rank(candidate Candidate, vm fleet.VM) Ranked {
	taken, others := reservedByOthers(candidate.Ledger, vm.UID)
	free := candidate.Host.Memory - taken.Memory - vm.Spec.Memory
	score := 10 / float64(1+others)
	if candidate.Host.Memory > 0 {
		score += 90 * float64(free) / float64(candidate.Host.Memory)
	}
	return Ranked{
		Host: candidate.Host.Name, Score: score,
		Why: fmt.Sprintf("%s of %s memory stay free, %d other VMs", free, candidate.Host.Memory, others),
	}
}

// noFit says why no host can take the VM. byBridge: a bridge, its MTU or its VLANs refused
// one of them.
func noFit(request Request, refused []Refusal, byBridge bool) error {
	failure := &fleet.Error{
		Code: fleet.NoFit, Op: "place", Subject: "vm " + string(request.VM.Name),
		Hint: "free capacity, uncordon a host or add one; godwit host list shows what each has left",
	}
	switch {
	case request.Want != "":
		failure.Cause = fmt.Sprintf("host %s cannot take it: %s", request.Want, strings.Join(refused[0].Why, "; "))
		failure.Hint = "choose another host, or leave the choice to godwit"
		if byBridge {
			failure.Hint += "; " + BridgeHint
		}
		return failure
	case len(refused) == 0:
		failure.Cause = "the fleet has no hosts"
		failure.Hint = "enrol one: godwit host token NAME, then godwit agent on that host"
		return failure
	case len(refused) == 1:
		failure.Cause = "the only host cannot take it"
	default:
		failure.Cause = fmt.Sprintf("none of the %d hosts can take it", len(refused))
	}
	if byBridge {
		failure.Hint = BridgeHint + "; else " + failure.Hint
	}
	for _, refusal := range refused {
		for _, why := range refusal.Why {
			failure.Fields = append(failure.Fields, fleet.FieldError{Path: string(refusal.Host), Problem: why})
		}
	}
	return failure
}
