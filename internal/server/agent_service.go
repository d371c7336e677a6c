package server

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

const (
	// helloWithin is how long a new session may take to say who it is.
	helloWithin = 10 * time.Second
	// migrationPrefix begins every migration's id.
	migrationPrefix = "m-"
)

// agentService is what agents call.
type agentService struct{ server *Server }

// Commit gives the right to run to a migration's target.
func (a agentService) Commit(ctx context.Context, stream *connect.BidiStream[godwitv1.CommitRequest, godwitv1.CommitResponse]) error {
	deadlines := callerOf(ctx).deadlines
	stop := func() { _ = deadlines.SetReadDeadline(time.Now()) }
	return a.server.migrations.ServeCommit(ctx, hostOf(ctx), stream, stop)
}

// hostOf is the host that makes a call of AgentService.
func hostOf(ctx context.Context) fleet.HostName {
	return fleet.HostName(callerOf(ctx).identity.Name)
}

// Session runs one agent's session until it ends.
func (a agentService) Session(ctx context.Context, stream *connect.BidiStream[godwitv1.SessionRequest, godwitv1.SessionResponse]) error {
	s, host, deadlines := a.server, hostOf(ctx), callerOf(ctx).deadlines
	_ = deadlines.SetReadDeadline(time.Now().Add(helloWithin))
	first, err := stream.Receive()
	if err != nil {
		err = endOfStream(host, err)
		s.log.Error("no session was opened", "host", host, "error", err)
		return err
	}
	_ = deadlines.SetReadDeadline(time.Time{})
	hello := first.GetHello()
	told, err := decodeHello(host, hello)
	if err != nil {
		s.log.Error("no session was opened", "host", host, "error", err)
		return err
	}
	hello.Instances = slices.DeleteFunc(hello.GetInstances(), func(instance *godwitv1.InstanceReport) bool {
		err := checkNames(&godwitv1.Report{Subject: instance.GetVm()})
		if err != nil { // the others count all the same
			s.log.Error("a host has what cannot be", "host", host, "error", err)
		}
		return err != nil
	})
	own, elsewhere, err := s.leader.await(ctx, leaderWithin)
	if err != nil {
		return err
	}
	if own == nil {
		return welcome(stream, &godwitv1.Welcome{Leader: elsewhere})
	}
	leave, ok := s.leader.join(own)
	if !ok {
		return notLeading(host)
	}
	defer leave()
	mark, err := s.checkStore(ctx, own, told, hello)
	if err != nil {
		return err
	}
	one := newSession(host, s.config.Heartbeat)
	one.agent, one.from = wire.Bounded(hello.GetProcess()), stream.Peer().Addr
	one.mark = func() *godwitv1.StoreMark {
		return &godwitv1.StoreMark{Cluster: mark.GetCluster(), Generation: mark.GetGeneration(), Revision: max(mark.GetRevision(), s.mirror.revision())}
	}
	stop := context.AfterFunc(own.ctx, func() { one.end(notLeading(host)) })
	defer stop()
	if err := s.hub.open(ctx, one); err != nil {
		s.log.Warn("no session was opened", "host", host, "from", one.from, "error", err)
		return err
	}
	defer s.hub.close(one)
	own.heard.Store(host, true)
	at, err := s.noteHost(ctx, told, hello, own.held...)
	if err == nil {
		err = s.mirror.reach(ctx, at.revision)
	}
	if err != nil {
		s.log.Warn("no session was opened", "host", host, "from", one.from, "error", err)
		return err
	}
	if err := welcome(stream, &godwitv1.Welcome{HeartbeatMs: s.config.Heartbeat.Milliseconds(), Store: mark}); err != nil {
		return err
	}
	s.log.Info("host is up", "host", host, "address", hello.GetHost().GetAddress())
	s.addresses.connected(host)
	s.lifecycle.Connected(ctx, host, at.Arrival, hello)
	s.migrations.SessionOpened(host, one.agent)
	err = one.serve(ctx, stream, deadlines, func(message *godwitv1.SessionRequest) {
		// A report that has arrived is dealt with even if the session ends.
		if err := s.hear(context.WithoutCancel(ctx), one, message, own.held...); err != nil {
			s.log.Warn("a host said what it must not", "host", host, "error", err)
			one.complain(err)
		}
	})
	s.addresses.disconnected(host)
	s.migrations.SessionEnded(host, err)
	level := slog.LevelInfo
	if fleet.CodeOf(err) == fleet.Invalid {
		level = slog.LevelError
	}
	s.log.Log(ctx, level, "host is down", "host", host, "cause", err)
	s.noteSilence(ctx, host, err)
	return err
}

func welcome(stream messageStream, message *godwitv1.Welcome) error {
	return stream.Send(&godwitv1.SessionResponse{Message: &godwitv1.SessionResponse_Welcome{Welcome: message}})
}

// noteSilence writes to a host's record when it was last heard of, after its
// session ended with cause. Only people read that, so a store that is away
// loses it: what stands there then is older.
func (s *Server) noteSilence(ctx context.Context, name fleet.HostName, cause error) {
	seen := time.Now()
	if fleet.CodeOf(cause) == fleet.Deadline {
		seen = seen.Add(-missedBeats * s.config.Heartbeat)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	err := s.tables.changeHost(ctx, "note silence", name, func(host *fleet.Host) bool {
		host.Seen = seen
		return true
	})
	if err != nil {
		s.log.Warn("not written when a host was last heard of", "host", name, "cause", err)
	}
}

// hear takes one message of a session. held holds as long as this server leads.
func (s *Server) hear(ctx context.Context, from *session, message *godwitv1.SessionRequest, held ...store.Condition) error {
	host := from.host
	if applied := message.GetAddressesApplied(); applied != nil {
		s.addresses.ack(host, applied.GetVersion())
		return nil
	}
	if networks := message.GetNetworks(); networks != nil {
		return s.noteNetworks(ctx, from, networks, held...)
	}
	report := message.GetReport()
	if report == nil {
		return &fleet.Error{
			Code: fleet.Invalid, Op: "read message", Subject: "host " + string(host), Cause: "it is of no kind that this server knows",
		}
	}
	if err := checkNames(report); err != nil {
		return err
	}
	switch {
	case report.GetDisksRemoved() != nil:
		return s.disksRemoved(ctx, host, report)
	case isMigration(report):
		return s.migrations.Report(ctx, host, report)
	default:
		return s.lifecycle.Report(ctx, host, report)
	}
}

// isMigration tells by the subject. A VM's name may begin like a migration's
// id, but what is reported of VMs are instances and hardware, and of migrations never.
func isMigration(report *godwitv1.Report) bool {
	return strings.HasPrefix(report.GetSubject(), migrationPrefix) && report.GetInstance() == nil && report.GetHardwareChanged() == nil
}

// arrival is what follows from a host's record when a session begins.
type arrival struct {
	lifecycle.Arrival
	revision int64 // what was stored before the session is from before that
}

// noteHost writes what a host says of itself to its record. A server that leads
// no more, and does not know it, finds that out here by held. No VM is placed on
// the host between what is read here and the commit.
func (s *Server) noteHost(ctx context.Context, host fleet.Host, hello *godwitv1.Hello, held ...store.Condition) (at arrival, err error) {
	name := string(host.Name)
	for range store.MaxConflicts {
		entry, err := s.tables.hosts.Get(ctx, name)
		if err != nil && fleet.CodeOf(err) != fleet.NotFound {
			return at, err
		}
		before := entry.Value
		if err := sameMachine(before, host); err != nil {
			return at, err
		}
		if at.Arrival, err = s.lifecycle.Arrival(ctx, before, hello); err != nil {
			return at, err
		}
		host.Machine = cmp.Or(host.Machine, before.Machine)
		host.Cordoned, host.Ended, host.Seen = before.Cordoned, at.Ended, time.Now()
		conditions := append(store.If(s.tables.hosts.At(name, entry.Version)), held...)
		at.revision, err = s.tables.store.Commit(ctx, conditions, s.tables.hosts.Put(name, host))
		if fleet.CodeOf(err) != fleet.Conflict {
			return at, err
		}
	}
	return at, tooManyConflicts("open session", "host "+name)
}

func decodeHello(name fleet.HostName, hello *godwitv1.Hello) (fleet.Host, error) {
	if hello == nil {
		return fleet.Host{}, &fleet.Error{Code: fleet.Invalid, Op: "open session", Subject: "host " + string(name), Cause: "its first message is not Hello", Hint: agentHint}
	}
	host, _, err := wire.DecodeHost(hello.GetHost())
	if err != nil {
		return host, err
	}
	host.Name, host.BootID, host.Machine = name, hello.GetBootId(), hello.GetMachine()
	refuse := func(path, problem string) (fleet.Host, error) {
		return host, invalidField("open session", "host "+string(name), "host."+path, problem)
	}
	switch size := proto.Size(hello.GetHost()) + len(hello.GetBootId()) + len(hello.GetMachine()); {
	case size > messageMax:
		return host, invalidField("open session", "host "+string(name), "host", fmt.Sprintf("takes %d bytes, more than %d", size, messageMax))
	case !host.Address.IsValid():
		return refuse("address", "is missing: other hosts must reach this one")
	case host.CPUs <= 0:
		return refuse("cpus", "must be at least 1")
	case host.Memory == 0:
		return refuse("memory_bytes", "must be more than 0")
	}
	if path, problem := checkHostNetworks(host.Networks); path != "" {
		return refuse(path, problem)
	}
	return host, nil
}

// sameMachine refuses a copy of a host's certificate elsewhere. What runs on the
// host it does not know, and would say to have ended.
func sameMachine(known, now fleet.Host) error {
	if known.Machine == "" || now.Machine == "" || known.Machine == now.Machine {
		return nil
	}
	name := string(now.Name)
	return &fleet.Error{
		Code: fleet.Denied, Op: "open session", Subject: "host " + name,
		Cause: "this is another machine than the one that has enrolled under that name",
		Hint:  "give it a name of its own; or, if it is to take the place of that one, on which nothing runs any more, enrol it with a new token: godwit host token " + name,
	}
}

func tooManyConflicts(op, subject string) error {
	return &fleet.Error{
		Code: fleet.Conflict, Op: op, Subject: subject,
		Cause: "its records are being changed by somebody else", Hint: "try again",
	}
}
