package migration

import (
	"fmt"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// ImageWait is what keeps a target from running that has the right to: an image of the
// VM is locked by another, as far as can be told by the source's instance. The lock is
// all that fences an image, so the target tries again until it is free.
type ImageWait struct {
	Disk  string    `json:"disk"`
	Since time.Time `json:"since"`
}

// noteImageWait keeps since when a target that failed waits.
func (m *Migration) noteImageWait(event Event) {
	switch {
	case event.Locked == "" || event.Gone || !m.AwaitsTarget():
		m.ImageWait = nil
	case m.ImageWait == nil || m.ImageWait.Disk != event.Locked:
		m.ImageWait = &ImageWait{Disk: event.Locked, Since: event.At}
	}
}

// awaitsImage: the target would run if it had the lock.
func (m *Migration) awaitsImage() bool { return m.ImageWait != nil && m.AwaitsTarget() }

// imageRemedies are what makes the holder of the lock let go of it, or go on itself.
func (m *Migration) imageRemedies() []string {
	if m.SourceGone {
		return []string{fmt.Sprintf("end what else has the image of disk %s of %s open, on whichever host", m.ImageWait.Disk, m.VM)}
	}
	return []string{startAgent(m.Source), m.endHolder(m.Source), declareLost(m.Source)}
}

func (m *Migration) endHolder(host fleet.HostName) string {
	return fmt.Sprintf("end QEMU of %s on %s, if the agent there can't be started: %s runs %s then", m.VM, host, m.Target, m.VM)
}
