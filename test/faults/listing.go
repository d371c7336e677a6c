package main

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/lab/fleetlab"
)

// listHosts looks at what there is on each host of a lab, and asks nobody that
// manages it: processes, network devices, and files of the agent.
func listHosts(f *fleetlab.Fleet) (map[string][]string, error) {
	all := map[string][]string{}
	for _, host := range f.Hosts() {
		home := f.Lab.Host(host)
		var is unix.Stat_t
		var devices []net.Interface
		err := home.Do(func() (err error) {
			if err := unix.Stat("/proc/thread-self/ns/net", &is); err != nil {
				return err
			}
			devices, err = net.Interfaces()
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, device := range devices {
			all[host] = append(all[host], "device "+device.Name)
		}
		processes, err := processesIn(is)
		if err != nil {
			return nil, err
		}
		files, err := filesIn(f.AgentDir(host))
		if err != nil {
			return nil, err
		}
		all[host] = append(append(all[host], processes...), files...)
		slices.Sort(all[host])
	}
	return all, nil
}

// overlayDevice is the last that an agent makes for the network of the client.
const overlayDevice = "device gwx-"

// listFirst lists a new lab as soon as the client's host has what it will always
// have.
func listFirst(ctx context.Context, f *fleetlab.Fleet) (all map[string][]string, err error) {
	bounded, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	err = poll(bounded, "the client's network", func() (bool, error) {
		all, err = listHosts(f)
		return slices.ContainsFunc(all[clientHost], func(one string) bool { return strings.HasPrefix(one, overlayDevice) }), err
	})
	return all, err
}

// processesIn names the programs that run in a network namespace.
func processesIn(namespace unix.Stat_t) (names []string, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err != nil {
			continue
		}
		var is unix.Stat_t
		if unix.Stat(filepath.Join("/proc", entry.Name(), "ns/net"), &is) != nil || is.Ino != namespace.Ino || is.Dev != namespace.Dev {
			continue // elsewhere, or gone
		}
		name, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "comm"))
		if err == nil {
			names = append(names, "process "+strings.TrimSpace(string(name)))
		}
	}
	return names, nil
}

// epochsFile is the agent's own, and of all VMs that it ever had; see
// docs/operations.md.
const epochsFile = "epochs.json"

// filesIn gives all that is below a folder, but what an agent makes when it first
// needs it and then keeps: its folders, and one file.
func filesIn(dir string) (paths []string, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below := strings.TrimPrefix(path, dir+"/")
		if below == epochsFile || entry.IsDir() && !strings.Contains(below, "/") {
			return nil
		}
		paths = append(paths, "file "+below)
		return nil
	})
	return paths, err
}

// differences tells what there is more, and less, on each host.
func differences(before, after map[string][]string) (all []string) {
	for _, host := range slices.Sorted(maps.Keys(after)) {
		counts := map[string]int{}
		for _, one := range after[host] {
			counts[one]++
		}
		for _, one := range before[host] {
			counts[one]--
		}
		for _, one := range slices.Sorted(maps.Keys(counts)) {
			if n := counts[one]; n != 0 {
				all = append(all, fmt.Sprintf("%s: %+d %s", host, n, one))
			}
		}
	}
	return all
}
