package fleetlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// member is a process of a unit: of a program and what it has started to work
// for it, such as the agent's monitor and the agent. QEMUs are none.
type member struct {
	pid, parent int
	state       byte // proc_pid_stat(5)
}

// membersOf gives the processes of a process group that have not ended.
func membersOf(group int) (all []member, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		one, its, err := readStat(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errEnded) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if its == group {
			all = append(all, one)
		}
	}
	return all, nil
}

var errEnded = errors.New("the process has ended")

func readStat(pid int) (one member, group int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return one, 0, errors.Join(errEnded, err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	if _, err := fmt.Sscanf(rest, "%c %d %d", &one.state, &one.parent, &group); err != nil {
		return one, 0, fmt.Errorf("read /proc/%d/stat: %w", pid, err)
	}
	if one.pid = pid; one.state == 'Z' || one.state == 'X' {
		return one, 0, errEnded
	}
	return one, group, nil
}

// Worker is the process that does an agent's work, which its monitor has started.
// It differs from life to life; os.ErrProcessDone while there is none.
func (p *Process) Worker() (*os.Process, error) {
	pid := p.PID()
	if pid == 0 {
		return nil, fmt.Errorf("find the process of %s: it does not run", p.name)
	}
	members, err := membersOf(pid)
	if err != nil {
		return nil, err
	}
	for _, one := range members {
		if one.parent == pid {
			return os.FindProcess(one.pid)
		}
	}
	return nil, fmt.Errorf("find the process of %s: its monitor has none: %w", p.name, os.ErrProcessDone)
}

// ContinueMonitor lets an agent's monitor go on that was paused with its agent,
// and leaves the agent as it is.
func (p *Process) ContinueMonitor() error {
	pid := p.PID()
	if pid == 0 {
		return fmt.Errorf("continue the monitor of %s: it does not run", p.name)
	}
	return os.NewSyscallError("kill", unix.Kill(pid, unix.SIGCONT))
}
