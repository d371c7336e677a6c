package agent

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pledge"
)

const (
	// commitWithin bounds the wait for one answer; it is asked again until the
	// server has decided or the target is released.
	commitWithin   = 2 * time.Second
	commitTurn     = 400 * time.Millisecond // the same, where another server can be asked
	commitRetryMin = 20 * time.Millisecond
	commitRetryMax = time.Second
)

// commitLine is a call of Commit that was opened before the state has been
// loaded, so that what is left to do then is a message each way. It may break
// at any time, as when its server ends: then asking fails, and another is
// opened.
type commitLine struct {
	migration string
	epoch     uint64
	cancel    context.CancelFunc
	opened    chan struct{} // stream is set, or nil for good
	stream    *connect.BidiStreamForClientSimple[godwitv1.CommitRequest, godwitv1.CommitResponse]
	answer    chan commitAnswer
}

type commitAnswer struct {
	response *godwitv1.CommitResponse
	err      error
}

// openCommit opens a line, to the servers in turn, and does not wait for it.
// What fails is its answer.
func (m *machine) openCommit(ctx context.Context, migration string, turn int) *commitLine {
	ctx, cancel := context.WithCancel(ctx)
	line := &commitLine{
		migration: migration, epoch: uint64(m.key.epoch - 1), cancel: cancel,
		opened: make(chan struct{}), answer: make(chan commitAnswer, 1),
	}
	go func() {
		response, err := line.serve(ctx, m.agent.servers.inTurn(turn).Client.Agent, func() {
			m.warmVolumes(ctx)
			if err := m.receiveInTurn(); err != nil { // it is tried again when the state has been loaded
				m.agent.log.Warn("the target does not receive yet", "vm", m.key.vm, "migration", migration, "error", err)
			}
		})
		line.answer <- commitAnswer{response, err}
	}()
	return line
}

// serve opens the call and takes what the server says, to the answer.
func (l *commitLine) serve(ctx context.Context, server godwitv1connect.AgentServiceClient, sourceStopped func()) (*godwitv1.CommitResponse, error) {
	stream, err := server.Commit(ctx)
	if err != nil {
		close(l.opened)
		return nil, err
	}
	defer func() { _ = stream.CloseResponse() }()
	l.stream = stream
	l.say(false)
	close(l.opened)
	for {
		response, err := stream.Receive()
		if err != nil || !response.GetSourceStopped() {
			return response, err
		}
		sourceStopped()
	}
}

// say sends a request. If that fails, Receive tells the cause.
func (l *commitLine) say(loaded bool) {
	_ = l.stream.Send(&godwitv1.CommitRequest{Migration: l.migration, Epoch: l.epoch, Loaded: loaded})
}

// decide asks for the decision, waits for it and closes the line.
func (l *commitLine) decide(within time.Duration, ended <-chan struct{}) (*godwitv1.CommitResponse, error) {
	defer l.close()
	limit := time.NewTimer(within)
	defer limit.Stop()
	opened := l.opened
	for {
		select {
		case <-opened:
			if opened = nil; l.stream != nil {
				l.say(true)
			}
		case answer := <-l.answer:
			return answer.response, answer.err
		case <-limit.C:
			return nil, context.DeadlineExceeded
		case <-ended:
			return nil, errors.New("the instance has ended")
		}
	}
}

// close ends the call.
func (l *commitLine) close() {
	l.cancel()
	// HTTP/2 heeds the end of the context only after the request's.
	if <-l.opened; l.stream != nil {
		_ = l.stream.CloseRequest()
	}
}

// askCommit asks any server for the right to run until it is given or refused.
func (m *machine) askCommit(ctx context.Context, migration string, line *commitLine) {
	m.mu.Lock()
	if m.marks.Asked == nil { // else an earlier agent may have asked
		m.marks.Asked = timestamppb.Now()
	}
	m.mu.Unlock()
	instance := m.held()
	if instance == nil { // lost: whoever takes it over anew asks
		return
	}
	for tries := 0; !m.isEnding(); tries++ {
		answer, err := line.decide(m.agent.servers.decideWithin(), instance.Exited())
		switch pledge.Decided(m.key.epoch, fleet.Epoch(answer.GetEpoch()), err) {
		case pledge.Granted:
			m.granted(ctx, migration, answer)
			return
		case pledge.Denied:
			m.agent.log.Info("the commit was refused", "migration", migration, "error", err)
			return // the server releases this target
		}
		others := m.agent.servers.count() - 1
		if tries == others+1 {
			m.agent.log.Warn("no answer to the commit yet; it is asked for again", "migration", migration, "error", err)
		}
		if !awaitTurn(ctx, tries-1-others, instance.Exited()) {
			return
		}
		line = m.openCommit(ctx, migration, tries+1)
	}
	line.close()
}

// awaitTurn waits until the commit is to be asked for again; false if it is not any
// more. At first, when round is negative, that is at once: the line was old, and may
// have broken long ago; and other servers may answer.
func awaitTurn(ctx context.Context, round int, ended <-chan struct{}) bool {
	if round < 0 {
		return true
	}
	pause := time.NewTimer(min(commitRetryMin<<min(round, 10), commitRetryMax))
	defer pause.Stop()
	select {
	case <-pause.C:
		return true
	case <-ended:
	case <-ctx.Done():
	}
	return false
}

// granted runs the target as the command RunTarget would that the answer
// stands for. That command is on its way, too; whichever comes first does it.
func (m *machine) granted(ctx context.Context, migration string, answer *godwitv1.CommitResponse) {
	command := &godwitv1.Command{
		Subject: migration, Epoch: uint64(m.key.epoch - 1), Sequence: answer.GetSequence(),
		Op: &godwitv1.Command_RunTarget{},
	}
	m.do(ctx, command, func() *godwitv1.Report { return m.runTarget(ctx, answer.GetVolumeKey()) })
}
