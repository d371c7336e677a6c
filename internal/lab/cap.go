package lab

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"godwit.dev/godwit/internal/fleet"
)

// capBurst is what passes at once on a link that is capped, in bytes: what the kernel
// segments late has to fit.
const capBurst = 128 << 10

// Cap bounds what a host sends to others, as a slow link does: what comes faster waits
// for at most 50 ms. A later cap takes its place.
func (l *Lab) Cap(host string, rate fleet.BytesPerSecond) error {
	from := l.Host(host)
	if from == nil || rate < 1 {
		return &fleet.Error{Code: fleet.Invalid, Op: "cap", Subject: host, Cause: "there is no such host, or no such rate"}
	}
	err := from.Do(func() error {
		device, err := netlink.LinkByName(HostDevice)
		if err != nil {
			return err
		}
		bytes := uint64(rate)
		return netlink.QdiscReplace(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: device.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       bytes, Buffer: netlink.Xmittime(bytes, capBurst), Limit: uint32(min(bytes/20, 1<<30)) + capBurst,
		})
	})
	if err != nil {
		return fmt.Errorf("cap host %s: %w", host, err)
	}
	return nil
}
