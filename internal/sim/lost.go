package sim

import (
	"context"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// loseHost is a loss of power after which a host is away for so long that an operator
// declares it lost, or for good. One at a time is.
func (w *world) loseHost(h *host) {
	h.crash()
	w.lost = h
	w.at(nil, w.between(5*time.Second, 40*time.Second), func() { w.declareLost(h) })
}

// declareLost has the operator say so, again and again until a server has done all
// of it. Nobody switches the host on before.
func (w *world) declareLost(h *host) {
	s := w.leader()
	if s == nil {
		w.at(nil, time.Second, func() { w.declareLost(h) })
		return
	}
	var answered, done bool
	life := s.proc.life
	s.spawn(s.proc, func() {
		err := s.declareLost(h)
		s.tell("%s is declared lost: %v", h.name, err)
		answered, done = true, err == nil
	})
	var look func()
	look = func() {
		switch {
		case done:
			w.giveBack(h)
		case answered || s.proc.life != life:
			w.declareLost(h)
		default:
			w.at(nil, time.Second, look)
		}
	}
	w.at(nil, time.Second, look)
}

// giveBack has every other lost host come back after all, some time later. When it is
// up the operator lets VMs on it again.
func (w *world) giveBack(h *host) {
	if w.one(2) {
		return
	}
	w.at(nil, w.between(0, 90*time.Second), func() {
		h.boot()
		w.uncordon(h)
	})
}

func (w *world) uncordon(h *host) {
	w.at(nil, w.between(time.Second, 10*time.Second), func() {
		if s := w.leader(); s != nil {
			s.spawn(s.proc, func() {
				if s.cordon(h, false) == nil {
					w.lost = nil
				}
			})
		}
		w.at(nil, 10*time.Second, func() {
			if w.lost == h {
				w.uncordon(h)
			}
		})
	})
}

// declareLost is what the server does for the operator's word, in its order. What was
// done before is not done again.
func (s *server) declareLost(h *host) error {
	ctx := context.Background()
	if s.connected(h.name) {
		return &fleet.Error{Code: fleet.Conflict, Op: "declare lost", Cause: "its agent has a session"}
	}
	if err := s.cordon(h, true); err != nil {
		return err
	}
	moves, _, err := s.tables.Migrations.All(ctx)
	if err != nil {
		return err
	}
	for _, entry := range moves {
		if m := entry.Value; m.Over() || !m.Involves(h.name) || s.bug(Untold) {
			continue
		}
		event := migration.Event{Kind: migration.HostLost, From: string(h.name), Detail: "declared lost by the operator"}
		if _, _, err := s.moves.Advance(ctx, entry.Value.ID, event); err != nil {
			return err
		}
	}
	vms, _, err := s.tables.VMs.All(ctx)
	if err != nil {
		return err
	}
	for _, entry := range vms {
		if err := s.lifecycle.GiveUp(ctx, h.name, entry.Value.Name, "host "+string(h.name)+" was declared lost"); err != nil {
			return err
		}
	}
	s.askAgain(h.name)
	return nil
}

// cordon keeps VMs from a host, or lets them on it again.
func (s *server) cordon(h *host, cordoned bool) error {
	entry, err := s.tables.Hosts.Get(context.Background(), string(h.name))
	if err != nil {
		return err
	}
	entry.Value.Cordoned = cordoned
	_, err = s.client.Commit(context.Background(), store.If(s.tables.Hosts.At(entry.Name, entry.Version)), s.tables.Hosts.Put(entry.Name, entry.Value))
	return err
}

// mayTake gives the condition on which a host may get a VM, if it may.
func (s *server) mayTake(ctx context.Context, h *host) (stands store.Condition, may bool) {
	entry, err := s.tables.Hosts.Get(ctx, string(h.name))
	return s.tables.Hosts.At(entry.Name, entry.Version), err == nil && !entry.Value.Cordoned
}
