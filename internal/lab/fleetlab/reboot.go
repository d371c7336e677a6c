package fleetlab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bootIDFile is where the kernel names its present boot.
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// agentDevices begin the names of what agents make; all else belongs to the lab.
var agentDevices = []string{tapPrefix, "gwb-", "gwx-", "gw-"}

func (f *Fleet) bootIDPath(host string) string { return filepath.Join(f.Lab.Dir(), host+".boot") }

// boot gives a host the boot id that its agent is to see, and no boot had before.
func (f *Fleet) boot(host string) error {
	return os.WriteFile(f.bootIDPath(host), []byte(rand.Text()+"\n"), 0o644)
}

// ownBoot has a program see the host's boot id in the place of this machine's.
func (f *Fleet) ownBoot(host string) []string {
	return OwnMounts(fmt.Sprintf("mount --bind '%s' %s", f.bootIDPath(host), bootIDFile))
}

// Crash takes a host's power: its agent and its QEMUs die at once, and what the
// kernel kept for them, their devices and gates, is gone. It comes back as
// another boot when its agent is started. Files stay, as far as they do. The
// fleet's Config must have Boots.
func (f *Fleet) Crash(host string) error {
	agent := f.Agent(host)
	if !f.config.Boots || agent == nil {
		return fmt.Errorf("crash %s: the fleet has no such host, or no boots", host)
	}
	// The agent must not see its QEMUs end, as it does not when the power fails.
	pids, err := f.QEMUs(host)
	if err != nil {
		return err
	}
	if err := agent.Pause(); err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill QEMU %d: %w", pid, err)
		}
	}
	if err := agent.Kill(); err != nil {
		return err
	}
	if err := f.Lab.Host(host).Do(removeAgentDevices); err != nil {
		return fmt.Errorf("remove the devices of %s: %w", host, err)
	}
	return f.boot(host)
}

func removeAgentDevices() error {
	links, err := listLinks()
	for _, link := range links {
		for _, prefix := range agentDevices {
			if !strings.HasPrefix(link.Attrs().Name, prefix) {
				continue
			}
			if gone := netlink.LinkDel(link); !errors.Is(gone, unix.ENODEV) { // a tap goes with its QEMU
				err = errors.Join(err, gone)
			}
			break
		}
	}
	return err
}
