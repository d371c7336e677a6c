package supervise_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"godwit.dev/godwit/internal/supervise"
)

// role is the variable that makes the test's program something else.
const role = "SUPERVISE_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "program":
		os.Exit(program())
	case "monitor":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := supervise.Run(ctx, config(os.Stdout, "program")); err != nil {
			fmt.Println("monitor:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// program says its process id and lives until it is asked to end. Variables have
// it fail before it is ready, not become ready, or use its keeper.
func program() int {
	link, supervised, err := supervise.Join()
	if err != nil || !supervised {
		fmt.Println("not supervised:", err)
		return 9
	}
	if os.Getenv("FAILS") != "" {
		return 3
	}
	if os.Getenv("SAYS_KEEPER") != "" {
		fmt.Println(link.Keeper() != nil)
		return 0
	}
	if os.Getenv("DAWDLES") != "" {
		fmt.Println(os.Getpid())
		select {}
	}
	if path := os.Getenv("KEEPS"); path != "" {
		if err := writeKept(link.Keeper(), path); err != nil {
			fmt.Println(err)
			return 7
		}
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	if err := link.Ready(); err != nil {
		return 8
	}
	fmt.Println(os.Getpid())
	<-asked
	return 0
}

// writeKept writes a letter to a FIFO, which the first life opens and has kept.
func writeKept(k *supervise.Keeper, path string) error {
	fd, found, err := k.Kept("fifo")
	if err == nil && !found {
		if fd, err = syscall.Open(path, syscall.O_WRONLY, 0); err == nil {
			err = k.Keep("fifo", fd)
		}
	}
	if err != nil {
		return err
	}
	_, err = syscall.Write(fd, []byte("a"))
	return errors.Join(err, syscall.Close(fd))
}

func config(out io.Writer, as string, env ...string) supervise.Config {
	return supervise.Config{
		Name: "the program",
		Command: func() *exec.Cmd {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(append(os.Environ(), role+"="+as), env...)
			cmd.Stdout = out
			return cmd
		},
		Log: slog.New(slog.DiscardHandler),
	}
}

// supervised is a monitor that runs in this process.
type supervised struct {
	lives *bufio.Scanner // a line of each life's beginning
	stop  context.CancelFunc
	ended chan error
}

func begin(t *testing.T, env ...string) *supervised {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	s := &supervised{bufio.NewScanner(r), stop, make(chan error, 1)}
	go func() { s.ended <- supervise.Run(ctx, config(w, "program", env...)) }()
	t.Cleanup(func() { stop(); r.Close(); w.Close() })
	return s
}

// next gives the process id of the next life.
func (s *supervised) next(t *testing.T) int {
	t.Helper()
	if !s.lives.Scan() {
		t.Fatal("no further life: ", s.lives.Err())
	}
	pid, err := strconv.Atoi(s.lives.Text())
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func kill(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

func TestRunStartsAgain(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{
		"killed": syscall.SIGKILL, "crashed": syscall.SIGABRT, "hung": syscall.SIGSTOP,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t)
			first := s.next(t)
			kill(t, first, signal)
			second := s.next(t)
			if first == second {
				t.Errorf("process %d both times", first)
			}
			if err := syscall.Kill(first, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("the first one is there: %v", err)
			}
			s.stop()
			if err := <-s.ended; err != nil {
				t.Error(err)
			}
			if err := syscall.Kill(second, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("the second one is there after the end: %v", err)
			}
		})
	}
}

// TestDescriptorsOutliveTheProgram: what is kept is never closed between two lives,
// and is closed with the monitor.
func TestDescriptorsOutliveTheProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	s := begin(t, "KEEPS="+path)
	fifo, err := os.Open(path) // once the first life has opened it, too
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	for range 3 {
		pid := s.next(t)
		var letter [1]byte
		if _, err := fifo.Read(letter[:]); err != nil {
			t.Fatalf("the FIFO was closed: %v", err)
		}
		kill(t, pid, syscall.SIGKILL)
	}
	last := s.next(t)
	kill(t, last, syscall.SIGTERM)
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
	if rest, err := io.ReadAll(fifo); err != nil || string(rest) != "a" {
		t.Errorf("the last life wrote %q, %v", rest, err)
	}
}

// TestRunStartsAgainWhatWasNotReady: that it was killed says nothing against it.
func TestRunStartsAgainWhatWasNotReady(t *testing.T) {
	s := begin(t, "DAWDLES=1")
	first := s.next(t)
	kill(t, first, syscall.SIGKILL)
	if second := s.next(t); first == second {
		t.Errorf("process %d both times", first)
	}
	s.stop()
	<-s.ended // by the signal that asks it to end
}

func TestRunEndsWithTheProgram(t *testing.T) {
	s := begin(t)
	kill(t, s.next(t), syscall.SIGTERM)
	if err := <-s.ended; err != nil {
		t.Error(err)
	}
}

func TestRunLeavesAFailureAlone(t *testing.T) {
	err := supervise.Run(t.Context(), config(os.Stdout, "program", "FAILS=1"))
	failed, ok := errors.AsType[*exec.ExitError](err)
	if !ok || failed.ExitCode() != 3 {
		t.Errorf("got %v, want exit code 3", err)
	}
}

// TestOlderMonitor: one that was started before the program was replaced keeps no
// descriptors.
func TestOlderMonitor(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	program := config(nil, "program", "GODWIT_SUPERVISED=1", "SAYS_KEEPER=1").Command()
	program.ExtraFiles = []*os.File{w}
	text, err := program.Output()
	w.Close()
	if err != nil || string(text) != "false\n" {
		t.Errorf("it keeps descriptors: %q, %v", text, err)
	}
}

// TestMonitorTakesTheProgramAlong: a killed monitor leaves no program that
// nobody looks after, and that keeps the next one away.
func TestMonitorTakesTheProgramAlong(t *testing.T) {
	monitor := exec.Command("/proc/self/exe")
	monitor.Env = append(os.Environ(), role+"=monitor")
	out, err := monitor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the program did not begin")
	}
	pid, err := strconv.Atoi(lines.Text())
	if err != nil {
		t.Fatal(err)
	}
	kill(t, monitor.Process.Pid, syscall.SIGKILL)
	if lines.Scan() { // the pipe closes when the last process that has it ends
		t.Errorf("it said %q after the monitor's end", lines.Text())
	}
	_ = monitor.Wait()
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(text), ") Z") {
		t.Errorf("the program lives: %s", text)
	}
}

// TestSuspendedTogether: what stops both is no reason to kill either.
func TestSuspendedTogether(t *testing.T) {
	monitor := exec.Command("/proc/self/exe")
	monitor.Env = append(os.Environ(), role+"=monitor")
	monitor.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := monitor.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("the program did not begin")
	}
	kill(t, -monitor.Process.Pid, syscall.SIGSTOP)
	<-time.After(2500 * time.Millisecond) // beyond the patience: as long as the host hangs
	kill(t, -monitor.Process.Pid, syscall.SIGCONT)
	watched := time.AfterFunc(time.Second, func() { kill(t, monitor.Process.Pid, syscall.SIGTERM) })
	defer watched.Stop()
	if lines.Scan() {
		t.Errorf("another program was started: %s", lines.Text())
	}
	if err := monitor.Wait(); err != nil {
		t.Error(err)
	}
}
