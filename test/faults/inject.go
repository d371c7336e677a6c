package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"godwit.dev/godwit/internal/lab/fleetlab"
)

const (
	// deadFor is how long a killed program stays dead: longer than the deadline
	// of a switch.
	deadFor = 10 * time.Second
	// brokenFor is how long a stop or a cut lasts.
	brokenFor = 5 * time.Second
	// pollEvery is how often is looked for what nobody tells.
	pollEvery = 2 * time.Millisecond
)

// effect is a fault that has begun.
type effect struct {
	lasts time.Duration
	end   func() error // nil if it is over, or for good
}

// inject does a cell's fault to its victim. Held is the target's agent if it is
// stopped by a signal already.
func inject(ctx context.Context, f *fleetlab.Fleet, p plane, c cell, held *fleetlab.Process) (effect, error) {
	if c.Fault.cuts() {
		heal, err := cut(f, p, c)
		return effect{brokenFor, heal}, err
	}
	if c.Victim.isQEMU() {
		return signalQEMU(ctx, f, c)
	}
	victims := programs(f, p, c.Victim)
	start := func() error { return each(victims, (*fleetlab.Process).Start) }
	resume := func() error { return each(victims, (*fleetlab.Process).Continue) }
	switch {
	case c.Fault == restart:
		if err := each(victims, (*fleetlab.Process).Kill); err != nil {
			return effect{}, err
		}
		return effect{}, start()
	case c.Victim.isAgent():
		return signalAgent(ctx, victims[0], c.Fault, victims[0] == held)
	case c.Fault == sigstop:
		return effect{brokenFor, resume}, each(victims, (*fleetlab.Process).Pause)
	}
	return effect{deadFor, start}, each(victims, (*fleetlab.Process).Kill)
}

// signalAgent does it to the process that does an agent's work. Its monitor is
// left to do what it is for; one that is held together with the agent is let go.
func signalAgent(ctx context.Context, agent *fleetlab.Process, f fault, held bool) (effect, error) {
	var worker *os.Process
	err := poll(ctx, "an agent", func() (there bool, err error) {
		worker, err = agent.Worker()
		if errors.Is(err, os.ErrProcessDone) { // its monitor starts another
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return effect{}, err
	}
	if f == sigkill {
		return effect{}, worker.Kill()
	}
	done, err := stopFor(ctx, worker)
	if held && err == nil {
		err = agent.ContinueMonitor()
	}
	return done, err
}

// each does the same to all processes.
func each(all []*fleetlab.Process, do func(*fleetlab.Process) error) error {
	var errs []error
	for _, one := range all {
		errs = append(errs, do(one))
	}
	return errors.Join(errs...)
}

// programs are the processes of a victim that is made of programs.
func programs(f *fleetlab.Fleet, p plane, v victim) []*fleetlab.Process {
	switch v {
	case sourceAgent:
		return []*fleetlab.Process{f.Agent(sourceHost)}
	case targetAgent:
		return []*fleetlab.Process{f.Agent(targetHost)}
	case serverLeader:
		return f.Servers()[p.leader : p.leader+1]
	case etcdMember:
		return f.Etcds()[p.first : p.first+1]
	case etcdQuorum:
		return f.Etcds()[p.survivors():]
	case volumeServer:
		return []*fleetlab.Process{f.VolumeServer(storageHost).Process}
	}
	return f.Servers()
}

func signalQEMU(ctx context.Context, f *fleetlab.Fleet, c cell) (effect, error) {
	host := sourceHost
	if c.Victim == targetQEMU {
		host = targetHost
	}
	process, err := awaitQEMU(ctx, f, host)
	if err != nil {
		return effect{}, err
	}
	if c.Fault == sigkill {
		return effect{}, process.Kill()
	}
	return stopFor(ctx, process)
}

// stopFor stops a process by a signal, for some time.
func stopFor(ctx context.Context, process *os.Process) (effect, error) {
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		return effect{}, err
	}
	return effect{brokenFor, func() error {
		if err := process.Signal(syscall.SIGCONT); err != nil && !gone(process) {
			return err
		}
		return nil // who ends a stopped process needs no leave from here
	}}, awaitStopped(ctx, process)
}

// awaitQEMU waits for a host's QEMU: one that is being started is there soon.
func awaitQEMU(ctx context.Context, f *fleetlab.Fleet, host string) (process *os.Process, err error) {
	err = poll(ctx, "a QEMU on "+host, func() (bool, error) {
		pids, err := f.QEMUs(host)
		if err != nil || len(pids) == 0 {
			return false, err
		}
		process, err = os.FindProcess(pids[0])
		return true, err
	})
	return process, err
}

// awaitStopped waits until a signal that stops a process has done so.
func awaitStopped(ctx context.Context, process *os.Process) error {
	return poll(ctx, "a process to be stopped", func() (bool, error) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", process.Pid))
		if err != nil {
			return false, err
		}
		_, rest, _ := strings.Cut(string(text), ") ") // proc_pid_stat(5)
		return strings.HasPrefix(rest, "T"), nil
	})
}

func gone(process *os.Process) bool { return process.Signal(syscall.Signal(0)) != nil }

// poll waits for what nobody tells.
func poll(ctx context.Context, what string, is func() (bool, error)) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		done, err := is()
		if done || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		}
	}
}
