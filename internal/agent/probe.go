package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
)

const (
	// probeWithin and probeBytes bound what a probe takes of a link, whichever is first.
	probeWithin = 200 * time.Millisecond
	probeBytes  = 64 << 20
	// The first quarter does not count: TCP begins slowly, and what shapes a link lets a
	// burst pass.
	probeWarm      = probeWithin / 4
	probeWarmBytes = probeBytes / 4
	probePiece     = 32 << 10
	// probesMax is how many a host takes at the same time.
	probesMax = 2
	// linkWithin is for all of it, with the way there.
	linkWithin = 5 * time.Second
)

// MeasureLink sends to another host as fast as it goes.
func (s measureService) MeasureLink(ctx context.Context, request *godwitv1.MeasureLinkRequest) (*godwitv1.MeasureLinkResponse, error) {
	refusal := &fleet.Error{Op: "measure link", Subject: "to host " + request.GetHost()}
	if callerOf(ctx).Kind != pki.Server {
		refusal.Code, refusal.Cause = fleet.Denied, "only servers may"
		return nil, refusal
	}
	if _, err := netip.ParseAddr(request.GetAddress()); err != nil || request.GetHost() == "" || request.GetPeerPort()-1 >= 1<<16-1 {
		refusal.Code, refusal.Cause, refusal.Err = fleet.Invalid, "its name, address or port is none", err
		return nil, refusal
	}
	ctx, cancel := context.WithTimeout(ctx, linkWithin)
	defer cancel()
	target, err := s.agent.dialPeer(peerRecord{Host: fleet.HostName(request.GetHost()), Address: peerAddress(request.GetAddress(), request.GetPeerPort())})
	if err != nil {
		return nil, err
	}
	defer target.Close()
	stream, err := target.ProbeLink(ctx)
	if err != nil {
		return nil, err
	}
	err = fill(stream)
	answer, failed := stream.CloseAndReceive()
	if err = cmp.Or(failed, err); err != nil { // the former says why nothing more was taken
		return nil, err
	}
	return &godwitv1.MeasureLinkResponse{BytesPerSecond: answer.GetBytesPerSecond(), Bytes: answer.GetBytes(), TookUs: answer.GetTookUs()}, nil
}

// fill sends until it is enough or the other end takes no more.
func fill(stream *connect.ClientStreamForClientSimple[godwitv1.ProbeLinkRequest, godwitv1.ProbeLinkResponse]) error {
	piece := &godwitv1.ProbeLinkRequest{Filling: make([]byte, probePiece)}
	_, _ = rand.Read(piece.Filling) // what can't be compressed on the way; it never fails
	began := time.Now()
	for sent := 0; sent < probeBytes && time.Since(began) < probeWithin; sent += probePiece {
		if err := stream.Send(piece); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// ProbeLink takes what another host sends.
func (s peerService) ProbeLink(ctx context.Context, stream *connect.ClientStream[godwitv1.ProbeLinkRequest]) (*godwitv1.ProbeLinkResponse, error) {
	caller := callerOf(ctx)
	if caller.Kind != pki.Host {
		return nil, &fleet.Error{Code: fleet.Denied, Op: "probe link", Cause: "only hosts may, and they show their certificates"}
	}
	select {
	case s.agent.probes <- struct{}{}:
		defer func() { <-s.agent.probes }()
	default:
		return nil, &fleet.Error{Code: fleet.Unavailable, Op: "probe link", Cause: "others are at it at this moment", Hint: "try again"}
	}
	p := newProbe(time.Now())
	for !p.over() && stream.Receive() {
		if p.bytes == 0 { // from now on; before, the usual time for a request runs
			_ = caller.deadlines.SetReadDeadline(time.Now().Add(probeWithin))
		}
		p.take(time.Now(), len(stream.Msg().GetFilling()))
	}
	if err := stream.Err(); err != nil && p.bytes == 0 {
		return nil, err
	}
	return p.answer(), nil
}

// probe counts what comes over a link.
type probe struct {
	began, last time.Time
	bytes       int
	warm        time.Time // when it began to count, and what had come by then
	warmBytes   int
}

func newProbe(now time.Time) *probe { return &probe{began: now, last: now, warm: now} }

func (p *probe) take(now time.Time, bytes int) {
	if p.bytes == 0 && bytes == 0 {
		return
	}
	p.bytes += bytes
	p.last = now
	if p.warmBytes == 0 && (now.Sub(p.began) >= probeWarm || p.bytes >= probeWarmBytes) {
		p.warm, p.warmBytes = now, p.bytes
	}
}

func (p *probe) over() bool {
	return p.bytes >= probeBytes || p.last.Sub(p.began) >= probeWithin
}

// answer gives the rate after the warm-up; of all if nothing came after that.
func (p *probe) answer() *godwitv1.ProbeLinkResponse {
	took, counted := p.last.Sub(p.warm), p.bytes-p.warmBytes
	if counted == 0 {
		took, counted = p.last.Sub(p.began), p.bytes
	}
	answer := &godwitv1.ProbeLinkResponse{Bytes: uint64(p.bytes), TookUs: p.last.Sub(p.began).Microseconds()}
	if took > 0 {
		answer.BytesPerSecond = float64(counted) / took.Seconds()
	}
	return answer
}
