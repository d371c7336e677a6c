package server

import (
	"context"
	"slices"
	"sync"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// hub knows the session of every connected host. It is safe for concurrent
// use.
type hub struct {
	mu       sync.Mutex
	sessions map[fleet.HostName]*session
	opened   uint64 // sessions so far
}

func newHub() *hub { return &hub{sessions: map[fleet.HostName]*session{}} }

// open makes s the session of its host. It ends an older one of the same agent,
// and waits until that has handled its last report. To one of another agent it
// gives way if that shows a sign of life: Conflict. Other errors are ctx's.
func (h *hub) open(ctx context.Context, s *session) error {
	for {
		older := h.enter(s)
		switch {
		case older == nil:
			return nil
		case older.isOf(s.agent):
			older.end(&fleet.Error{
				Code: fleet.Conflict, Op: "keep session", Subject: "host " + string(s.host),
				Cause: "a newer session of this host has replaced it",
				Hint:  "if this host runs one agent only, another machine uses its certificate",
			})
			select {
			case <-older.finished:
				return nil
			case <-ctx.Done():
				h.close(s)
				return ctx.Err()
			}
		}
		if err := older.outlive(ctx); err != nil {
			return err
		}
	}
}

// enter makes s the session of its host, unless there is one of another agent. It
// gives the one that there was.
func (h *hub) enter(s *session) (older *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	older = h.sessions[s.host]
	if older == nil || older.isOf(s.agent) {
		h.opened++
		s.number = h.opened
		h.sessions[s.host] = s
	}
	return older
}

// close forgets s, unless a newer session has replaced it, and says that it is
// finished.
func (h *hub) close(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sessions[s.host] == s {
		delete(h.sessions, s.host)
	}
	close(s.finished)
}

func (h *hub) session(host fleet.HostName) *session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[host]
}

// End makes the session of a host end, if it has one.
func (h *hub) End(host fleet.HostName, cause error) {
	if s := h.session(host); s != nil {
		s.end(cause)
	}
}

// Send queues a command for a host and does not wait. Unavailable when the
// host has no session, Exhausted when its queue is full.
func (h *hub) Send(host fleet.HostName, command *godwitv1.Command) error {
	return send(h.session(host), host, command)
}

// SendIn is Send into one session only: Unavailable when the host has another.
func (h *hub) SendIn(number uint64, host fleet.HostName, command *godwitv1.Command) error {
	s := h.session(host)
	if s != nil && s.number != number {
		s = nil
	}
	return send(s, host, command)
}

func send(s *session, host fleet.HostName, command *godwitv1.Command) error {
	if s == nil {
		return &fleet.Error{
			Code: fleet.Unavailable, Op: "command", Subject: "host " + string(host),
			Cause: "its agent has no session with this server", Hint: "see that godwit agent runs there and reaches the server",
		}
	}
	return s.send(&godwitv1.SessionResponse{Message: &godwitv1.SessionResponse_Command{Command: command}})
}

// sendAddresses replaces what of the address map still waits for the host.
func (h *hub) sendAddresses(host fleet.HostName, addresses *godwitv1.AddressMap) {
	if s := h.session(host); s != nil {
		s.sendAddresses(addresses)
	}
}

// connected reports whether the host has a session here.
func (h *hub) connected(host fleet.HostName) bool { return h.session(host) != nil }

// Session tells the sessions of a host apart; 0 means that it has none.
func (h *hub) Session(host fleet.HostName) uint64 {
	if s := h.session(host); s != nil {
		return s.number
	}
	return 0
}

// hosts lists the connected hosts by name.
func (h *hub) hosts() (names []fleet.HostName) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range h.sessions {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
