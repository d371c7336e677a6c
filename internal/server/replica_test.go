package server

import (
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
)

// newReplicas starts servers on one store and gives that which leads first.
func newReplicas(t *testing.T, number int) (leader *testFleet, others []*testFleet) {
	t.Helper()
	leader = newFleet(t, replicas)
	leader.awaitLeader(leader)
	for range number - 1 {
		other := leader.another()
		other.awaitLeader(leader)
		others = append(others, other)
	}
	return leader, others
}

func replicas(c *Config) { c.Replicas = true }

// another starts one more server on the store, as changed.
func (f *testFleet) another(changes ...func(*Config)) *testFleet {
	f.t.Helper()
	dir, err := os.MkdirTemp("", "gw") // short: the socket's path is limited
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	other := &testFleet{t: f.t, dir: dir, store: f.store}
	other.start(append(changes, replicas)...)
	return other
}

// succeeded ends the leader and gives the server that leads then.
func (f *testFleet) succeeded() *testFleet {
	f.t.Helper()
	other := f.another()
	other.awaitLeader(f)
	f.stop()
	other.awaitLeader(other)
	return other
}

// awaitLeader waits until a server knows that another one leads, or that it
// does itself.
func (f *testFleet) awaitLeader(other *testFleet) {
	f.t.Helper()
	late := time.After(patience)
	for {
		own, url, changed := f.server.leader.now()
		if own != nil && f == other || url == other.url() {
			return
		}
		select {
		case <-changed:
		case <-late:
			f.t.Fatalf("the leader is %q (own: %t), not %s", url, own != nil, other.url())
		}
	}
}

// Three servers on one store are one fleet: the same authority, no address that
// two give away, and the same answers wherever they are asked for.
func TestServersShareOneStore(t *testing.T) {
	t.Parallel()
	one, others := newReplicas(t, 3)
	all := append(others, one)
	for _, f := range all {
		if one.server.authority.Fingerprint() != f.server.authority.Fingerprint() {
			t.Fatal("they have different authorities")
		}
	}
	others[0].network("blue", "10.20.0.0/24")
	const each = 4
	var group sync.WaitGroup
	for i, f := range all {
		group.Go(func() {
			for n := range each {
				_, err := f.vms.Create(t.Context(), &godwitv1.CreateVMRequest{
					Name: fmt.Sprintf("vm%d-%d", i, n), Spec: smallSpec("blue"), Stopped: true,
				})
				if err != nil {
					t.Errorf("server %d: %s", i, describe(err))
				}
			}
		})
	}
	group.Wait()
	seen := map[string]string{}
	response, err := others[1].vms.List(t.Context(), &godwitv1.ListVMsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range response.GetVms() {
		port := vm.GetSpec().GetPorts()[0]
		for _, address := range append(port.GetIps(), port.GetMac()) {
			if other := seen[address]; other != "" {
				t.Errorf("%s and %s both have %s", other, vm.GetName(), address)
			}
			seen[address] = vm.GetName()
		}
	}
	if len(seen) != 2*len(all)*each {
		t.Errorf("%d addresses for %d VMs", len(seen), len(response.GetVms()))
	}
	_, err = others[0].vms.Create(t.Context(), &godwitv1.CreateVMRequest{Name: "vm1-0", Spec: smallSpec("blue"), Stopped: true})
	if fleet.CodeOf(err) != fleet.Exists {
		t.Errorf("a name that another server gave: %v", err)
	}
}

// Sessions are the leader's. Every server knows what only it knows.
func TestSessionsFindTheLeader(t *testing.T) {
	t.Parallel()
	leader, others := newReplicas(t, 2)
	agent := leader.join("h1")
	elsewhere, err := others[0].tryJoin("h2")
	if err == nil {
		t.Fatalf("another server took the session of %s", elsewhere.name)
	}
	if want := fmt.Sprintf("the first message is welcome:{leader:%q}", leader.url()); normalSpace(err.Error()) != normalSpace(want) {
		t.Errorf("got %q, want %q", err, want)
	}
	response, err := others[0].hosts.Get(t.Context(), &godwitv1.GetHostRequest{Name: "h1"})
	if err != nil || response.GetHost().GetState() != "up" {
		t.Errorf("host h1: %v, %v", response, err)
	}
	others[0].running(agent, "web1")
}

// normalSpace takes out what protobuf's text form varies on purpose.
func normalSpace(text string) (out string) {
	for _, r := range text {
		if r != ' ' {
			out += string(r)
		}
	}
	return out
}

// Only a server may speak for somebody else.
func TestNobodySpeaksForOthers(t *testing.T) {
	t.Parallel()
	f, _ := newReplicas(t, 1)
	for kind, want := range map[pki.Kind]int{pki.Host: http.StatusForbidden, pki.User: http.StatusForbidden, pki.Server: http.StatusOK} {
		client := f.client(f.clientConfig(f.keeper(pki.Identity{Kind: kind, Name: "x1"}, 0)))
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url()+"/godwit.v1.VMService/List", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set(callerHeader, "admin/root")
		request.Header.Set("Content-Type", "application/proto")
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("a %s for an administrator: %s", kind, response.Status)
		}
	}
}

// A call that comes while nobody leads waits, and is answered by the next
// leader.
func TestCallsWaitForALeader(t *testing.T) {
	t.Parallel()
	first, _ := newReplicas(t, 1)
	first.stop()
	held, err := first.store.Campaign(t.Context(), leaderKey, `{"url":""}`) // by one that cannot be called
	if err != nil {
		t.Fatal(err)
	}
	second := first.another()
	answered := make(chan error, 1)
	go func() {
		_, err := second.networks.Create(t.Context(), &godwitv1.CreateNetworkRequest{
			Network: &godwitv1.Network{Name: "blue", Subnets: []string{"10.20.0.0/24"}},
		})
		answered <- err
	}()
	// What needs no leader does not wait.
	if _, err := second.vms.List(t.Context(), &godwitv1.ListVMsRequest{}); err != nil {
		t.Error(err)
	}
	select {
	case err := <-answered:
		t.Errorf("answered without a leader: %v", err)
	default:
	}
	held.Resign()
	if err := <-answered; err != nil {
		t.Error(describe(err))
	}
}

// The commit and the abort need no leader, and the leader takes up at once what
// another server has decided.
func TestDecisionsThroughAnyServer(t *testing.T) {
	t.Parallel()
	leader, others := newReplicas(t, 2)
	h1, h2 := leader.join("h1"), leader.join("h2")
	for _, decide := range []string{"commit", "abort"} {
		t.Run(decide, func(t *testing.T) {
			fl := leader.fly(h1, h2, "web-"+decide, testPolicy())
			fl.to(inSwitch)
			through := others[0].follow(h1, h2, fl.vm, fl.id)
			if decide == "abort" {
				through.mustCancel()
				fl.finish(inResume)
				return
			}
			through.mustCommit()
			fl.finish(inRun)
			fl.atTarget(t)
		})
	}
}

// The target's line, opened at another server, hears of the stop that the
// leader was told of.
func TestLineToAnotherServer(t *testing.T) {
	t.Parallel()
	leader, others := newReplicas(t, 2)
	fl := leader.fly(leader.join("h1"), leader.join("h2"), "web1", testPolicy())
	fl.to(inCopy)
	line := others[0].follow(fl.source, fl.target, fl.vm, fl.id).line("h2")
	fl.stopSource()
	if answer, err := line.Receive(); err != nil || !answer.GetSourceStopped() {
		t.Fatalf("the line said %v, %v", answer, err)
	}
	if err := line.Send(&godwitv1.CommitRequest{Migration: fl.id, Epoch: 1, Loaded: true}); err != nil {
		t.Fatal(err)
	}
	if answer, err := line.Receive(); err != nil || answer.GetEpoch() != 2 {
		t.Fatalf("the line said %v, %v", answer, err)
	}
	fl.finish(inRun)
	fl.atTarget(t)
}

// sentTo keeps what hosts are sent, and sends nothing.
type sentTo map[fleet.HostName][]*godwitv1.Command

func (s sentTo) Send(host fleet.HostName, command *godwitv1.Command) error {
	s[host] = append(s[host], command)
	return nil
}

// A server that leads again knows what was done while another one led, before its
// watch of the store tells it: an order of what is over meets whatever came after.
func TestOrdersOfAnEarlierTerm(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inResume)
	sent := sentTo{}
	again := newReconciler(f.server.tables, sent, f.server.addresses, f.server.hub.connected, f.server.foreseer, f.server.log)
	leads := func() {
		t.Helper()
		clear(sent)
		if err := again.Begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		again.HostConnected("h1")
		again.Redispatch()
	}
	leads()
	if len(sent["h1"]) == 0 || sent["h1"][0].GetResumeSource() == nil {
		t.Fatalf("in the first term h1 is sent %v", sent["h1"])
	}
	again.Stand()
	fl.finish(inResume)
	leads()
	if len(sent) != 0 || again.Kept() != 0 {
		t.Errorf("in the second term %v is sent, %d runs are kept", sent, again.Kept())
	}
}
