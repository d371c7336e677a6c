package fleetlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// tapPrefix begins the names of the taps that agents make.
const tapPrefix = "gwt"

// Inventory is what of VMs there is on one host, by the host itself and by the
// server. Two inventories are equal, by String, if nothing came and nothing
// was left behind.
type Inventory struct {
	QEMUs          []int // pids
	Taps           []string
	Folders        []string // of instances
	CPUsReserved   int32
	MemoryReserved uint64
}

// String tells what there is in one line.
func (i Inventory) String() string {
	return fmt.Sprintf("QEMUs %v, taps %v, folders %v, reserved %d CPUs and %d bytes",
		i.QEMUs, i.Taps, i.Folders, i.CPUsReserved, i.MemoryReserved)
}

// Empty tells that there is nothing.
func (i Inventory) Empty() bool {
	return len(i.QEMUs)+len(i.Taps)+len(i.Folders) == 0 && i.CPUsReserved == 0 && i.MemoryReserved == 0
}

// Inventory looks at a host.
func (f *Fleet) Inventory(ctx context.Context, host string) (i Inventory, err error) {
	home := f.Lab.Host(host)
	if home == nil {
		return i, fmt.Errorf("inventory: there is no host %s", host)
	}
	if i.QEMUs, err = f.QEMUs(host); err != nil {
		return i, err
	}
	err = home.Do(func() error {
		links, err := listLinks()
		for _, link := range links {
			if name := link.Attrs().Name; strings.HasPrefix(name, tapPrefix) {
				i.Taps = append(i.Taps, name)
			}
		}
		return err
	})
	if err != nil {
		return i, err
	}
	slices.Sort(i.Taps)
	entries, err := os.ReadDir(filepath.Join(f.AgentDir(host), "instances"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return i, err
	}
	for _, entry := range entries {
		i.Folders = append(i.Folders, entry.Name())
	}
	answer, err := f.API.Host.Get(ctx, &godwitv1.GetHostRequest{Name: host})
	i.CPUsReserved, i.MemoryReserved = answer.GetHost().GetCpusReserved(), answer.GetHost().GetMemoryReservedBytes()
	return i, err
}

// QEMUs gives the pids of the QEMUs on a host, in order.
func (f *Fleet) QEMUs(host string) ([]int, error) { return qemusIn(f.Lab.Host(host).Name()) }

// qemusIn gives the pids of the QEMUs in a named network namespace, in order.
func qemusIn(namespace string) (pids []int, err error) {
	var want unix.Stat_t
	if err := unix.Stat(filepath.Join("/run/netns", namespace), &want); err != nil {
		return nil, fmt.Errorf("namespace %s: %w", namespace, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		var is unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &is) != nil || is.Ino != want.Ino || is.Dev != want.Dev {
			continue // elsewhere, or gone
		}
		program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && strings.HasPrefix(filepath.Base(program), "qemu-system") {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// listLinks lists the devices, anew when the kernel says that a change has
// disturbed the list.
func listLinks() (links []netlink.Link, err error) {
	const attempts = 16
	for range attempts {
		links, err = netlink.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return links, err
}
