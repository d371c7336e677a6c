package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
)

// record is instance.json. It is written before the process exists, without
// PID, and again when it does: a program that died in between finds the
// process by QEMU's own pid file.
type record struct {
	Config    Config `json:"config"`
	PID       int    `json:"pid,omitempty"`
	StartTime uint64 `json:"startTime,omitempty"` // clock ticks after boot, proc(5) field 22
}

func (r record) write() error {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(r.Config.Dir, recordFile), text, 0o600)
}

func readRecord(dir string) (record, error) {
	var r record
	text, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return r, &fleet.Error{Code: fleet.NotFound, Op: "adopt instance", Subject: dir, Cause: "it has no record of an instance"}
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return r, &fleet.Error{Code: fleet.Internal, Op: "adopt instance", Subject: dir, Cause: "its record cannot be read", Err: err}
	}
	r.Config.Dir = dir // it may have been reached by another path
	return r, nil
}

// startTime reads when a process began, which with its id names it for as long
// as the host is up. The error is fs.ErrNotExist when there is no such process
// or it has ended and only waits to be reaped.
func startTime(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return startOf(text)
}

// startOf reads the line of /proc/PID/stat.
func startOf(text []byte) (uint64, error) {
	// The second field is the command in parentheses and may hold anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const state, start = 0, 19 // fields 3 and 22 of the line
	if len(fields) <= start {
		return 0, fmt.Errorf("the state of a process has %d fields", len(fields)+2)
	}
	if fields[state] == "Z" || fields[state] == "X" {
		return 0, fs.ErrNotExist
	}
	return strconv.ParseUint(fields[start], 10, 64)
}

// notStarting gives cause back, why there is no process, unless there is one all
// the same that is on its way: it has QEMU's log from its first moment on, and with
// it the lock on that.
func notStarting(dir string, cause error) error {
	log, err := os.Open(filepath.Join(dir, logFile))
	if errors.Is(err, fs.ErrNotExist) {
		return cause
	}
	if err != nil {
		return err
	}
	defer log.Close()
	err = unix.Flock(int(log.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errors.New("it is starting")
	}
	return errors.Join(cause, err)
}

// findByPIDFile completes a record whose process was started by a program that
// died before it wrote the process down. Process ids are used again, so that
// the command line must name this very instance.
func (r *record) findByPIDFile() error {
	text, err := os.ReadFile(filepath.Join(r.Config.Dir, pidFile))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	began, err := startTime(pid)
	if err != nil {
		return err
	}
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return err
	}
	if !bytes.Contains(command, []byte("\x00"+string(r.Config.UID)+"\x00")) {
		return fs.ErrNotExist
	}
	r.PID, r.StartTime = pid, began
	return r.write()
}
