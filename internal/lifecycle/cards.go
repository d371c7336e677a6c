package lifecycle

import (
	"context"
	"errors"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// A host says once in a session that the guest has let go of a card by itself. While a
// migration holds the VM it is open which host's cards count, so that is kept until the
// migration has ended, and counts if the VM is that host's then.

// heldCard is what a host says of such a card.
type heldCard struct {
	host   fleet.HostName
	report *godwitv1.Report
}

// holdCard keeps it. The VM is to be looked at then: the migration may have ended.
func (l *Lifecycle) holdCard(host fleet.HostName, report *godwitv1.Report) {
	name, slot := fleet.VMName(report.GetSubject()), fleet.Slot(report.GetHardwareChanged().GetSlot())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cards[name] == nil {
		l.cards[name] = map[fleet.Slot]heldCard{}
	}
	l.cards[name][slot] = heldCard{host, report}
}

// settleCards takes up what is held of a VM's cards. An error is one that passes, and
// the rest is still held then. No later change of the VM's hardware was told before.
func (l *Lifecycle) settleCards(ctx context.Context, name fleet.VMName) (err error) {
	l.mu.Lock()
	cards := l.cards[name]
	delete(l.cards, name)
	l.mu.Unlock()
	for _, one := range cards {
		failed := l.hardwareChanged(ctx, one.host, one.report)
		switch {
		case store.Passes(failed):
			l.holdCard(one.host, one.report)
			err = errors.Join(err, failed)
		case failed != nil:
			l.Log.Warn("the end of a card can't be taken", "host", one.host, "vm", name, "error", failed)
		}
	}
	return err
}
