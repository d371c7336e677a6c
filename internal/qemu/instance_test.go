package qemu_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qemu"
)

func TestLife(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		i := start(t, config(t, binary))
		events := i.Subscribe()
		defer events.Close()
		status(t, i, "prelaunch")
		before := time.Now()
		at, err := i.Resume(within(t))
		if err != nil {
			t.Fatal(err)
		}
		if at.Before(before.Truncate(time.Microsecond)) || at.After(time.Now()) {
			t.Errorf("resumed at %v, asked at %v", at, before)
		}
		if event := await(t, events, qemu.Event{Kind: qemu.Resumed}); !event.At.Equal(at) {
			t.Errorf("event at %v, want %v", event.At, at)
		}
		if at, err := i.Resume(within(t)); err != nil || !at.IsZero() {
			t.Errorf("resumed again: %v, %v; want no time", at, err)
		}
		if err := i.Stop(within(t)); err != nil {
			t.Fatal(err)
		}
		await(t, events, qemu.Event{Kind: qemu.Stopped})
		status(t, i, "paused")
		if err := i.Quit(within(t)); err != nil {
			t.Fatal(err)
		}
		<-i.Exited()
		if !i.Ended() || !strings.Contains(i.ExitCause(), "exit status 0") {
			t.Errorf("ended %v: %s", i.Ended(), i.ExitCause())
		}
		if err := i.Kill(within(t)); err != nil {
			t.Errorf("kill after the end: %v", err)
		}
		if _, err := i.Status(within(t)); err == nil {
			t.Error("a QEMU that has ended has a status")
		}
	})
}

func TestOwnSession(t *testing.T) {
	i := start(t, config(t, installed))
	own, _, _ := syscall.RawSyscall(syscall.SYS_GETSID, uintptr(i.PID()), 0, 0)
	if int(own) != i.PID() {
		t.Errorf("session %d, want its own, %d", own, i.PID())
	}
}

func TestStartErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*qemu.Config)
		code   fleet.Code
		says   string
	}{
		"unknown machine": {func(c *qemu.Config) { c.Machine = "pc-i440fx-99.9" }, fleet.Failed, "unsupported machine type"},
		"unknown CPU":     {func(c *qemu.Config) { c.CPUModel = "nonesuch" }, fleet.Failed, "nonesuch"},
		"no such binary":  {func(c *qemu.Config) { c.Binary = "/nonesuch/qemu" }, fleet.Failed, "no such file"},
		"no such kernel":  {func(c *qemu.Config) { c.Kernel = "/nonesuch/kernel" }, fleet.Failed, "/nonesuch/kernel"},
		"no such disk": {func(c *qemu.Config) { c.Disks = []qemu.Disk{{Name: "root", Path: "/nonesuch/disk", Format: "raw"}} },
			fleet.Unavailable, "/nonesuch/disk"},
		"bad format": {func(c *qemu.Config) { c.Disks = []qemu.Disk{{Name: "root", Path: "/dev/null", Format: "vmdk"}} },
			fleet.Invalid, "vmdk"},
		"closed descriptor": {func(c *qemu.Config) {
			c.NICs = []qemu.NIC{{Name: "lan", MAC: "52:54:00:00:00:01", FDs: []int{1 << 20}}}
		}, fleet.Failed, "descriptor"},
		"odd memory": {func(c *qemu.Config) { c.Memory++ }, fleet.Invalid, "MiB"},
		"long path":  {func(c *qemu.Config) { c.Dir += strings.Repeat("/x", 60) }, fleet.Invalid, "longer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := config(t, installed)
			dir := c.Dir
			tt.change(&c)
			_, err := qemu.Start(within(t), c)
			code(t, err, tt.code)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v does not say %q", err, tt.says)
			}
			entries, _ := os.ReadDir(dir)
			for _, entry := range entries {
				if filepath.Ext(entry.Name()) != ".log" {
					t.Errorf("left behind: %s", entry.Name())
				}
			}
		})
	}
}

func TestAdopt(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		first, err := qemu.Start(within(t), config(t, binary))
		if err != nil {
			t.Fatal(err)
		}
		resume(t, first)
		first.Close()
		second, err := qemu.Adopt(within(t), first.Config().Dir, "")
		if err != nil {
			t.Fatal(err)
		}
		endWith(t, second)
		if second.PID() != first.PID() || second.Config().VM != "web1" {
			t.Errorf("adopted process %d of %s", second.PID(), second.Config().VM)
		}
		status(t, second, "running")
		if err := second.Kill(within(t)); err != nil {
			t.Fatal(err)
		}
		_, err = qemu.Adopt(within(t), first.Config().Dir, "")
		code(t, err, fleet.NotFound)
	})
}

// startedByAnother starts an instance in a child of the test, which then ends.
func startedByAnother(t *testing.T) (dir string) {
	t.Helper()
	c := config(t, installed)
	child := exec.CommandContext(within(t), os.Args[0])
	child.Env = append(os.Environ(), startInChild+"="+c.Dir)
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return c.Dir
}

// forgetProcess leaves the record as it is before the process is written down.
func forgetProcess(dir string) error {
	path := filepath.Join(dir, "instance.json")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	forget := func(line []byte) bool {
		return bytes.Contains(line, []byte(`"pid"`)) || bytes.Contains(line, []byte(`"startTime"`))
	}
	kept := slices.DeleteFunc(slices.Collect(bytes.Lines(text)), forget)
	text = bytes.Replace(bytes.Join(kept, nil), []byte("\t},\n}"), []byte("\t}\n}"), 1)
	return os.WriteFile(path, text, 0o600)
}

// TestAdoptFromAnotherProcess starts an instance in a child of the test that
// then ends, as an agent does that is upgraded.
func TestAdoptFromAnotherProcess(t *testing.T) {
	for name, lose := range map[string]func(dir string) error{
		"with its record": func(string) error { return nil },
		// The agent died before it could write the process id down.
		"by QEMU's pid file": forgetProcess,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := startedByAnother(t)
			if err := lose(dir); err != nil {
				t.Fatal(err)
			}
			i, err := qemu.Adopt(within(t), dir, "")
			if err != nil {
				t.Fatal(err)
			}
			endWith(t, i)
			status(t, i, "running")
			if err := i.Kill(within(t)); err != nil || !i.Ended() {
				t.Errorf("ended %v, %v", i.Ended(), err)
			}
		})
	}
}

// TestAdoptWhatIsStarting: the agent died, and QEMU has not come to write its pid
// file yet. It is not taken for one that has ended, and is adopted when it has.
func TestAdoptWhatIsStarting(t *testing.T) {
	t.Parallel()
	dir := startedByAnother(t)
	pidFile, later := filepath.Join(dir, "qemu.pid"), filepath.Join(dir, "later")
	if err := errors.Join(forgetProcess(dir), os.Rename(pidFile, later)); err != nil {
		t.Fatal(err)
	}
	if _, err := qemu.Adopt(within(t), dir, ""); fleet.CodeOf(err) != fleet.Unavailable {
		t.Errorf("while it starts: %v", err)
	}
	if err := os.Rename(later, pidFile); err != nil {
		t.Fatal(err)
	}
	i, err := qemu.Adopt(within(t), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	endWith(t, i)
	if err := i.Kill(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(forgetProcess(dir), os.Remove(pidFile)); err != nil {
		t.Fatal(err)
	}
	_, err = qemu.Adopt(within(t), dir, "")
	code(t, err, fleet.NotFound)
}

const startInChild = "GODWIT_TEST_START_IN"

func startAndLeave(dir string) int {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	i, err := qemu.Start(ctx, qemu.Config{
		VM: "web1", UID: "6b1d5a0c-6d3f-4f0e-9a55-0c5f0d1f8a12", Epoch: 1, Dir: dir, Binary: installed,
		Accel: "tcg", Machine: "pc", CPUModel: "qemu64", VCPUs: 1, Memory: 64 * fleet.MiB,
	})
	if err == nil {
		_, err = i.Resume(ctx)
	}
	if err != nil {
		os.Stderr.WriteString(err.Error())
		return 1
	}
	return 0
}

func TestAdoptRefusesAnotherProcess(t *testing.T) {
	c := config(t, installed)
	i := start(t, c)
	path := filepath.Join(c.Dir, "instance.json")
	record, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Kill(within(t)); err != nil {
		t.Fatal(err)
	}
	forge := func(pid string) error {
		t.Helper()
		at := bytes.Index(record, []byte(`"pid": `))
		end := at + bytes.IndexByte(record[at:], ',')
		forged := slices.Concat(record[:at], []byte(`"pid": `+pid), record[end:])
		if err := os.WriteFile(path, forged, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := qemu.Adopt(within(t), c.Dir, "")
		return err
	}
	code(t, forge("1"), fleet.NotFound) // the number now belongs to another process
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	code(t, forge(threads[len(threads)-1].Name()), fleet.NotFound) // to a thread of one
	// It is not known, and where it should be written can't be read.
	pidFile := filepath.Join(c.Dir, "qemu.pid")
	if err := errors.Join(os.RemoveAll(pidFile), os.Mkdir(pidFile, 0o700)); err != nil {
		t.Fatal(err)
	}
	code(t, forge("0"), fleet.Unavailable)
	_, err = qemu.Adopt(within(t), t.TempDir(), "")
	code(t, err, fleet.NotFound)
}

// TestAdoptAfterReboot has a record of before a reboot whose process id belongs
// to another process now, begun as long after the boot as QEMU was.
func TestAdoptAfterReboot(t *testing.T) {
	c := config(t, installed)
	c.Boot = "first"
	i := start(t, c)
	if err := i.Kill(within(t)); err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(c.Dir, "instance.json")
	var record map[string]any
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &record)
	}
	if err != nil {
		t.Fatal(err)
	}
	began, err := strconv.ParseUint(strings.Fields(string(other))[21], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	record["pid"], record["startTime"] = os.Getpid(), began
	if text, err = json.Marshal(record); err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = qemu.Adopt(within(t), c.Dir, "first")
	code(t, err, fleet.Unavailable) // who knows
	_, err = qemu.Adopt(within(t), c.Dir, "second")
	code(t, err, fleet.NotFound)
}

func TestProbe(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		f, err := qemu.Probe(within(t), binary, probeDir(t.TempDir()))
		if err != nil {
			t.Fatal(err)
		}
		known := f.Fleet()
		if !slices.Contains(known.CPUModels, "qemu64") || !slices.Contains(known.Machines, known.Aliases["q35"]) {
			t.Errorf("CPU models %v, q35 is %q", known.CPUModels, known.Aliases["q35"])
		}
		if f.Accel == "tcg" && slices.Contains(known.CPUModels, "host") {
			t.Error("CPU model host is usable without KVM")
		}
		if !slices.Contains(f.Capabilities, "pause-before-switchover") || !f.Schema.HasCommand("migrate") {
			t.Errorf("capabilities %v", f.Capabilities)
		}
	})
	_, err := qemu.Probe(within(t), "/nonesuch/qemu", probeDir(t.TempDir()))
	code(t, err, fleet.Unsupported)
}

// What is no QEMU is told apart by how it ended and what it said.
func TestProbeOfWhatIsNoQEMU(t *testing.T) {
	script := func(body string) string {
		path := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, test := range []struct{ name, binary, want string }{
		{"silent", "/bin/true", "it does not answer as QEMU does: it ended at once (exit status 0) and said nothing"},
		{"failing", script("echo no such option >&2; exit 3"), "it ended at once (exit status 3) and said: no such option"},
		{"killed", script("kill -9 $$"), "it ended at once (signal: killed) and said nothing"},
		{"talkative", script("echo hello"), "it ended at once (exit status 0) and said: hello"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := qemu.Probe(within(t), test.binary, probeDir(t.TempDir()))
			code(t, err, fleet.Failed)
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%q is not in: %v", test.want, err)
			}
			if hint := fleet.HintOf(err); !strings.Contains(hint, "x86-64, 7.2 or later") || !strings.Contains(hint, test.binary+" --version") {
				t.Errorf("hint %q", hint)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := qemu.Probe(ctx, script("exec sleep 60"), probeDir(t.TempDir()))
	if code(t, err, fleet.Failed); !strings.Contains(err.Error(), "it runs, and said nothing") {
		t.Error(err)
	}
}

const probeInChild = "GODWIT_TEST_PROBE"

func probeDir(parent string) string { return filepath.Join(parent, "probe") }

// TestProbeEndsWithItsProgram kills a program while it asks a QEMU, which must not
// be left, and its folder no longer than until the next one asks.
func TestProbeEndsWithItsProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo, binary := filepath.Join(dir, "began"), filepath.Join(dir, "qemu")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, []byte("#!/bin/sh\nexec >"+fifo+"\necho begun\nexec sleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(within(t), os.Args[0])
	child.Env = append(os.Environ(), probeInChild+"="+binary)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	began, err := os.Open(fifo) // until the last writer has it open no more, which is the sleep
	if err != nil {
		t.Fatal(err)
	}
	defer began.Close()
	words := bufio.NewReader(began)
	if line, err := words.ReadString('\n'); err != nil || line != "begun\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	if err := began.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(words); err != nil {
		t.Errorf("it lives on: %q, %v", rest, err)
	}
	_, err = qemu.Probe(within(t), "/bin/true", probeDir(dir))
	code(t, err, fleet.Failed)
	if !strings.Contains(err.Error(), "and said nothing") {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 { // of this test
		t.Errorf("there are %v, %v", left, err)
	}
}
