package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/wire"
)

// fakeAgent speaks the real protocol of sessions and does nothing behind it:
// the test decides what it reports.
type fakeAgent struct {
	t        *testing.T
	name     string
	commands chan *godwitv1.Command
	maps     chan *godwitv1.AddressMap
	beats    chan struct{}
	ended    chan error
	close    func()

	send   sync.Mutex
	stream *connect.BidiStreamForClientSimple[godwitv1.SessionRequest, godwitv1.SessionResponse]
}

type agentOptions struct {
	hello  func(*godwitv1.Hello)
	keeper *pki.Keeper // of an agent that enrolled before
	mute   bool        // sends no heartbeats
	noAcks bool        // applies no addresses
}

func testHost(name string) *godwitv1.Host {
	return &godwitv1.Host{
		Name: name, Address: "10.9.0." + name[len(name)-1:], Cpus: 8, MemoryBytes: uint64(8 * fleet.GiB),
		QemuVersion: "10.0.2", Accel: "tcg", AgentVersion: "test",
		Machines: []string{"pc-q35-9.2", "pc-q35-10.0"}, MachineAliases: map[string]string{"q35": "pc-q35-10.0"},
		CpuModels: []string{"qemu64", "Westmere"}, MigrationCapabilities: []string{"switchover-ack"},
	}
}

// join enrols a host and opens its session. Names end in a digit.
func (f *testFleet) join(name string, edit ...func(*agentOptions)) *fakeAgent {
	f.t.Helper()
	agent, err := f.tryJoin(name, edit...)
	if err != nil {
		f.t.Fatalf("join %s: %v", name, err)
	}
	return agent
}

func (f *testFleet) tryJoin(name string, edit ...func(*agentOptions)) (*fakeAgent, error) {
	f.t.Helper()
	var options agentOptions
	for _, e := range edit {
		e(&options)
	}
	if options.keeper == nil {
		options.keeper = f.keeper(pki.Identity{Kind: pki.Host, Name: name}, 0)
	}
	client := godwitv1connect.NewAgentServiceClient(f.client(f.clientConfig(options.keeper)), f.url(),
		connect.WithInterceptors(wire.ClientInterceptor(f.url())))
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := client.Session(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	a := &fakeAgent{
		t: f.t, name: name, stream: stream, close: cancel,
		commands: make(chan *godwitv1.Command, 64), maps: make(chan *godwitv1.AddressMap, 64),
		beats: make(chan struct{}, 1), ended: make(chan error, 1),
	}
	f.t.Cleanup(cancel)
	hello := &godwitv1.Hello{Host: testHost(name), BootId: "boot-1"}
	if options.hello != nil {
		options.hello(hello)
	}
	go a.say(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Hello{Hello: hello}}) // who refuses at once may never read it
	first, err := stream.Receive()
	if err != nil {
		return nil, err
	}
	if first.GetWelcome().GetHeartbeatMs() <= 0 {
		return nil, fmt.Errorf("the first message is %v", first)
	}
	if !options.mute {
		go a.beat(ctx, time.Duration(first.GetWelcome().GetHeartbeatMs())*time.Millisecond)
	}
	go a.listen(options.noAcks)
	return a, nil
}

func (a *fakeAgent) say(message *godwitv1.SessionRequest) {
	a.send.Lock()
	defer a.send.Unlock()
	_ = a.stream.Send(message) // the end of the stream shows in listen
}

func (a *fakeAgent) beat(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			a.say(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Heartbeat{Heartbeat: &godwitv1.Heartbeat{}}})
		case <-ctx.Done():
			return
		}
	}
}

func (a *fakeAgent) listen(noAcks bool) {
	for {
		message, err := a.stream.Receive()
		if err != nil {
			a.ended <- err
			return
		}
		switch {
		case message.GetCommand() != nil:
			command := message.GetCommand()
			if command.GetUid() == "" && command.GetForgetInstance() == nil { // of which the host has said no uid
				a.t.Errorf("%s is told %v, and not for which VM of that name", a.name, command)
			}
			a.commands <- command
		case message.GetAddresses() != nil:
			a.maps <- message.GetAddresses()
			if !noAcks {
				a.ack(message.GetAddresses().GetVersion())
			}
		case message.GetHeartbeat() != nil:
			select {
			case a.beats <- struct{}{}:
			default:
			}
		}
	}
}

func (a *fakeAgent) ack(version int64) {
	a.say(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_AddressesApplied{
		AddressesApplied: &godwitv1.AddressesApplied{Version: version},
	}})
}

// command waits for the next command.
func (a *fakeAgent) command() *godwitv1.Command {
	a.t.Helper()
	select {
	case command := <-a.commands:
		return command
	case err := <-a.ended:
		a.t.Fatalf("the session of %s has ended: %v", a.name, err)
	case <-time.After(patience):
		a.t.Fatalf("no command came to %s", a.name)
	}
	return nil
}

// report answers a command with the state of its instance.
func (a *fakeAgent) report(command *godwitv1.Command, vm, state, cause string) {
	a.say(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Report{Report: &godwitv1.Report{
		Subject: vm, Epoch: command.GetEpoch(), Sequence: command.GetSequence(), At: timestamppb.Now(),
		Event: &godwitv1.Report_Instance{Instance: &godwitv1.InstanceReport{
			Vm: vm, Epoch: command.GetEpoch(), State: state, Cause: cause,
		}},
	}}})
}

// awaitMap waits for an address map that is as wanted.
func (a *fakeAgent) awaitMap(what string, wanted func(*godwitv1.AddressMap) bool) *godwitv1.AddressMap {
	a.t.Helper()
	late := time.After(patience)
	for {
		select {
		case addresses := <-a.maps:
			if wanted(addresses) {
				return addresses
			}
		case <-late:
			a.t.Fatalf("no address map came to %s with %s", a.name, what)
		}
	}
}

// end waits for the end of the session.
func (a *fakeAgent) end() error {
	a.t.Helper()
	select {
	case err := <-a.ended:
		return err
	case <-time.After(patience):
		a.t.Fatalf("the session of %s goes on", a.name)
		return nil
	}
}

// running starts a VM on the host of an agent and lets it run.
func (f *testFleet) running(agent *fakeAgent, name string, networks ...string) *godwitv1.VM {
	f.t.Helper()
	f.create(&godwitv1.CreateVMRequest{Name: name, Spec: smallSpec(networks...), Host: agent.name})
	command := agent.command()
	for strings.HasPrefix(command.GetSubject(), migrationPrefix) {
		command = agent.command() // sent again while its answer was on the way
	}
	if command.GetStartInstance() == nil {
		f.t.Fatalf("got command %v, want start", command)
	}
	agent.report(command, name, "running", "")
	return f.awaitPhase(name, fleet.VMRunning)
}

func fieldsOf(err error) []fleet.FieldError {
	if e, ok := errors.AsType[*fleet.Error](err); ok {
		return e.Fields
	}
	return nil
}
