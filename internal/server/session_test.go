package server

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

func TestNewerSessionReplacesOlder(t *testing.T) {
	f := newFleet(t)
	older := f.join("h1")
	newer := f.join("h1")
	if err := older.end(); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "newer session") {
		t.Errorf("the older session ended with %v", err)
	}
	if !f.server.hub.connected("h1") {
		t.Error("the host is down although its newer session is open")
	}
	f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec()})
	if command := newer.command(); command.GetSubject() != "web1" {
		t.Errorf("the newer session got %v", command)
	}
	select {
	case command := <-older.commands:
		t.Errorf("the older session got %v", command)
	default:
	}
}

func TestReportsBeforeAReplacementAreHandledFirst(t *testing.T) {
	f := newFleet(t)
	older := f.join("h1")
	f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec()})
	start := older.command()
	older.report(start, "web1", "running", "")
	f.awaitPhase("web1", fleet.VMRunning)
	older.report(start, "web1", "exited", "crashed")
	f.awaitPhase("web1", fleet.VMFailed)
	newer := f.join("h1")
	select {
	case command := <-newer.commands:
		t.Errorf("the newer session got %v for a VM that has ended", command)
	default:
	}
}

func TestSilentHostIsDown(t *testing.T) {
	f := newFleet(t, func(c *Config) { c.Heartbeat = 50 * time.Millisecond })
	began := time.Now()
	silent := f.join("h1", func(o *agentOptions) { o.mute = true })
	err := silent.end()
	if fleet.CodeOf(err) != fleet.Deadline || time.Since(began) < missedBeats*50*time.Millisecond {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	loud := f.join("h2")
	for range 2 * missedBeats {
		select {
		case <-loud.beats:
		case err := <-loud.ended:
			t.Fatalf("a host that sends heartbeats was cut off: %v", err)
		}
	}
	response, err := f.hosts.List(t.Context(), &godwitv1.ListHostsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, host := range response.GetHosts() {
		states = append(states, host.GetName()+" "+host.GetState())
	}
	if got := strings.Join(states, ", "); got != "h1 down, h2 up" {
		t.Errorf("hosts: %s", got)
	}
}

// A host that is up is heard of now, one that is not was so until its session
// ended or, if that was for its silence, until that began.
func TestSeen(t *testing.T) {
	const beat = 100 * time.Millisecond
	seen := func(f *testFleet, name string) (string, time.Time) {
		response, err := f.hosts.Get(t.Context(), &godwitv1.GetHostRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return response.GetHost().GetState(), response.GetHost().GetSeen().AsTime()
	}
	f := newFleet(t, func(c *Config) { c.Heartbeat = beat })
	f.join("h1")
	for range 2 {
		asked := time.Now()
		if state, at := seen(f, "h1"); state != "up" || at.Before(asked) {
			t.Errorf("%s, seen %v before it was asked for", state, asked.Sub(at))
		}
	}
	began := time.Now()
	silent := f.join("h2", func(o *agentOptions) { o.mute = true })
	heard := time.Now()
	_ = silent.end()
	ended := time.Now()
	if state, at := seen(f, "h2"); state != "down" || at.Before(began) || at.After(ended.Add(-missedBeats*beat)) {
		t.Errorf("the silent host is %s, seen %v after its hello", state, at.Sub(heard))
	}
	leaving := f.join("h3")
	left := time.Now()
	leaving.send.Lock()
	if err := leaving.stream.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	leaving.send.Unlock()
	_ = leaving.end()
	if state, at := seen(f, "h3"); state != "down" || at.Before(left) || at.After(time.Now()) {
		t.Errorf("the host that left is %s, seen %v after it did", state, at.Sub(left))
	}
}

func TestHelloIsChecked(t *testing.T) {
	f := newFleet(t)
	cases := []struct {
		name  string
		edit  func(*godwitv1.Hello)
		field string
	}{
		{"no address", func(h *godwitv1.Hello) { h.Host.Address = "" }, "host.address"},
		{"bad address", func(h *godwitv1.Hello) { h.Host.Address = "somewhere" }, "address"},
		{"no CPUs", func(h *godwitv1.Hello) { h.Host.Cpus = 0 }, "host.cpus"},
		{"no memory", func(h *godwitv1.Hello) { h.Host.MemoryBytes = 0 }, "host.memory_bytes"},
	}
	for _, test := range cases {
		_, err := f.tryJoin("h1", func(o *agentOptions) { o.hello = test.edit })
		if fields := fieldsOf(err); fleet.CodeOf(err) != fleet.Invalid || len(fields) != 1 || fields[0].Path != test.field {
			t.Errorf("%s: %s", test.name, describe(err))
		}
	}
	// The name in the message does not count, the one in the certificate does.
	f.join("h1", func(o *agentOptions) { o.hello = func(h *godwitv1.Hello) { h.Host.Name, h.Host.Cordoned = "h9", true } })
	response, err := f.hosts.List(t.Context(), &godwitv1.ListHostsRequest{})
	if err != nil || len(response.GetHosts()) != 1 || response.GetHosts()[0].GetName() != "h1" || response.GetHosts()[0].GetState() != "up" {
		t.Errorf("hosts %v, %v", response.GetHosts(), err)
	}
}

func TestCordonSurvivesReconnect(t *testing.T) {
	f := newFleet(t)
	f.join("h1")
	if _, err := f.hosts.Cordon(t.Context(), &godwitv1.CordonHostRequest{Name: "h1", Cordoned: true}); err != nil {
		t.Fatal(err)
	}
	f.join("h1")
	response, err := f.hosts.Get(t.Context(), &godwitv1.GetHostRequest{Name: "h1"})
	if err != nil || response.GetHost().GetState() != "cordoned" {
		t.Errorf("host %v, %v", response.GetHost(), err)
	}
}

func TestQueueOfASessionIsBounded(t *testing.T) {
	h := newHub()
	s := newSession("h1", time.Second)
	if err := h.Send("h1", &godwitv1.Command{}); fleet.CodeOf(err) != fleet.Unavailable {
		t.Errorf("without a session: %v", err)
	}
	if err := h.open(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for range sessionQueue {
		if err := h.Send("h1", &godwitv1.Command{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Send("h1", &godwitv1.Command{}); fleet.CodeOf(err) != fleet.Exhausted {
		t.Errorf("with a full queue: %v", err)
	}
	for version := range int64(5) {
		h.sendAddresses("h1", &godwitv1.AddressMap{Version: version})
	}
	if waiting := <-s.addresses; waiting.GetVersion() != 4 || len(s.addresses) != 0 {
		t.Errorf("map %d waits, want the newest", waiting.GetVersion())
	}
}

func TestOpenWaitsForTheOlderSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		older, newer := newSession("h1", time.Second), newSession("h1", time.Second)
		if err := h.open(t.Context(), older); err != nil {
			t.Fatal(err)
		}
		var group errgroup.Group
		opened := false
		group.Go(func() error {
			err := h.open(t.Context(), newer)
			opened = true
			return err
		})
		<-older.ended
		synctest.Wait()
		if opened {
			t.Error("the newer session is open before the older has finished")
		}
		h.close(older)
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
		if h.session("h1") != newer {
			t.Error("closing the older session has closed the newer one")
		}
		if code := fleet.CodeOf(older.cause); code != fleet.Conflict {
			t.Errorf("the older session ended with %v", older.cause)
		}
		older.end(errors.New("again"))
		h.close(newer)
		if len(h.hosts()) != 0 {
			t.Errorf("hosts %v are connected", h.hosts())
		}
	})
}

// rival makes an agent one of several with a host's certificate.
func rival(process string) func(*agentOptions) {
	return func(o *agentOptions) {
		before := o.hello
		o.hello = func(h *godwitv1.Hello) {
			if before != nil {
				before(h)
			}
			h.Process = process
		}
	}
}

// Of two agents with the same certificate the one that has the session keeps it,
// and what it is told; a migration of its host goes on.
func TestTwoAgentsOfOneHost(t *testing.T) {
	t.Parallel()
	log := &said{}
	f := newFleet(t, func(c *Config) {
		c.Logger, c.Heartbeat = slog.New(slog.NewTextHandler(log, nil)), time.Second
	})
	h1, h2 := f.join("h1", rival("one")), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	for range 2 {
		twin, err := f.tryJoin("h1", rival("two"))
		if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "another agent runs this host: it calls from 127.0.0.1:") ||
			!strings.Contains(fleet.HintOf(err), "godwit host token") {
			t.Fatalf("the second agent has %v, and was told %v (%s)", twin, err, fleet.HintOf(err))
		}
	}
	if !strings.Contains(log.String(), "another agent runs this host") {
		t.Error("the server's log does not tell of the second agent")
	}
	fl.finish(inCopy)
	fl.atTarget(t)
	h1.close()
	_ = h1.end()
	f.join("h1", rival("two")) // it has no rival now
}

// An agent that comes back by itself, and one whose forerunner fell silent with
// its host, are let in.
func TestAgentReturns(t *testing.T) {
	t.Parallel()
	f := newFleet(t, func(c *Config) { c.Heartbeat = 500 * time.Millisecond })
	first := f.join("h1", rival("one"))
	f.join("h1", rival("one"), func(o *agentOptions) { o.mute = true })
	if err := first.end(); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("its older session ended with %v", err)
	}
	f.join("h1", rival("two"))
}

// A certificate that was taken to another machine is no good there, until the
// operator enrols that machine in its place.
func TestCertificateOnAnotherMachine(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	on := func(machine, boot string) func(*agentOptions) {
		return func(o *agentOptions) {
			o.hello = func(h *godwitv1.Hello) { h.Machine, h.BootId = machine, boot }
		}
	}
	h1 := f.join("h1", on("a", "boot-1"))
	f.running(h1, "web1")
	h1.close()
	_ = h1.end()
	_, err := f.tryJoin("h1", on("b", "boot-7"))
	if fleet.CodeOf(err) != fleet.Denied || !strings.Contains(err.Error(), "another machine") || !strings.Contains(fleet.HintOf(err), "godwit host token h1") {
		t.Errorf("on another machine: %v (%s)", err, fleet.HintOf(err))
	}
	if vm := f.vm("web1"); vm.GetPhase() != string(fleet.VMRunning) || vm.GetOwner().GetHost() != "h1" {
		t.Errorf("another machine has changed the VM to %v on %v", vm.GetPhase(), vm.GetOwner())
	}
	if _, err := f.enrol("h1", f.token("h1")); err != nil {
		t.Fatal(err)
	}
	f.join("h1", on("b", "boot-7"))
	f.awaitPhase("web1", fleet.VMFailed) // as after any loss of a host
}
