package cli_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// command gives the program as a process that calls a fake server.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	address, stop, err := startFake(t.TempDir() + "/asked")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	cmd := exec.CommandContext(t.Context(), "godwit", args...)
	cmd.Env = append(os.Environ(), "GODWIT_SERVER="+address, "TZ=UTC", "TERM=xterm", "NO_COLOR=", "GORACE="+noRaceSleep)
	return cmd
}

// openTerminal gives both ends of a pseudo-terminal (pty(7)).
func openTerminal(t *testing.T, columns uint16) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns})
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// onTerminal runs a command to its end and gives what the terminal was sent.
func onTerminal(t *testing.T, columns uint16, cmd *exec.Cmd) string {
	t.Helper()
	master, slave := openTerminal(t, columns)
	cmd.Stdout = slave
	err := cmd.Start()
	slave.Close()
	if err != nil {
		t.Fatal(err)
	}
	sent, err := io.ReadAll(master)
	if err != nil && !errors.Is(err, syscall.EIO) { // EIO: the other end is closed
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(sent), "\r\n", "\n")
}

func TestLiveViewDrawsInPlace(t *testing.T) {
	const columns = 72
	sent := onTerminal(t, columns, command(t, "migration", "watch", "m1"))
	frames := strings.Split(sent, "\r\x1b[J")
	if len(frames) != 10 {
		t.Fatalf("%d frames: %q", len(frames), sent)
	}
	for i, want := range []string{
		"\x1b[1mweb1: host-a → host-b  (m1)\x1b[0m\n\x1b[33mpreparing\x1b[0m\n\x1b[2A",
		"\x1b[1mweb1: host-a → host-b  (m1)\x1b[0m\n" +
			"\x1b[33mcopying\x1b[0m  [░░░░░░░░░░░░░░░░░░░░░░░░]   0%  pass 1  eta 4.1s\n" +
			"sent 0B  left 512MiB  dirty 4MiB/s  bandwidth 98.5MiB/s\n\x1b[3A",
		"\x1b[1mweb1: host-a → host-b  (m1)\x1b[0m\n" +
			"\x1b[33mcopying\x1b[0m  [████████████░░░░░░░░░░░░]  50%  pass 1  eta 2s\n" +
			"sent 256MiB  left 256MiB  dirty 4MiB/s  bandwidth 98.5MiB/s\n\x1b[3A",
	} {
		if frames[i] != want {
			t.Errorf("frame %d:\n got %q\nwant %q", i, frames[i], want)
		}
	}
	last := frames[len(frames)-1]
	if !strings.HasPrefix(last, "migration m1 \x1b[32msucceeded\x1b[0m: vm web1 runs on host-b\n") {
		t.Errorf("last frame %q", last)
	}
}

func TestLiveViewNeverWraps(t *testing.T) {
	const columns = 30
	cmd := command(t, "migration", "watch", "m1", "--no-color")
	frames := strings.Split(onTerminal(t, columns, cmd), "\r\x1b[J")
	for _, frame := range frames[:len(frames)-1] {
		for line := range strings.Lines(frame) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n >= columns {
				t.Errorf("%d columns: %q", n, line)
			}
		}
	}
}

func TestColoursCanBeTurnedOff(t *testing.T) {
	for name, change := range map[string]func(*exec.Cmd){
		"flag":     func(cmd *exec.Cmd) { cmd.Args = append(cmd.Args, "--no-color") },
		"variable": func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "NO_COLOR=1") },
		"dumb":     func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, "TERM=dumb") },
	} {
		t.Run(name, func(t *testing.T) {
			cmd := command(t, "vm", "list")
			change(cmd)
			if sent := onTerminal(t, 80, cmd); strings.Contains(sent, "\x1b") {
				t.Errorf("coloured: %q", sent)
			}
		})
	}
	if sent := onTerminal(t, 80, command(t, "vm", "list")); !strings.Contains(sent, "\x1b[32mrunning\x1b[0m") {
		t.Errorf("not coloured: %q", sent)
	}
}

// The first line of a wait comes after two seconds, and Ctrl-C ends the waiting
// alone.
func TestInterruptEndsAWaitButNotTheOrder(t *testing.T) {
	cmd := command(t, "vm", "stop", "endless", "--grace", "1h")
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(errs)
	line, err := lines.ReadString('\n')
	if want := "vm endless is stopping on host-a for 2s; Ctrl-C ends the waiting, not the VM's stop\n"; err != nil || line != want {
		t.Errorf("said %q, %v", line, err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(lines)
	if want := "vm endless is still stopping, and goes on; follow it with `godwit vm watch endless`\n"; err != nil || string(rest) != want {
		t.Errorf("at last said %q, %v", rest, err)
	}
	if got := codeOf(cmd.Wait()); got != "130" {
		t.Errorf("exit code %s", got)
	}
}

func TestInterruptEndsAWatchButNotTheMigration(t *testing.T) {
	tests := []struct {
		args []string
		code int
		says string
	}{
		{[]string{"migration", "watch", "endless"}, 130, "migration endless goes on; follow it with " +
			"`godwit migration watch endless`, cancel it with `godwit migration cancel endless`\n"},
		{[]string{"vm", "watch"}, 0, ""},
	}
	for _, test := range tests {
		t.Run(test.args[0], func(t *testing.T) {
			cmd := command(t, test.args...)
			var said strings.Builder
			cmd.Stderr = &said
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(out)
			if _, err := lines.ReadString('\n'); err != nil { // now it watches
				t.Fatal(err)
			}
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, lines); err != nil {
				t.Fatal(err)
			}
			if got := codeOf(cmd.Wait()); got != fmt.Sprint(test.code) || said.String() != test.says {
				t.Errorf("exit code %s, said %q", got, said.String())
			}
		})
	}
}

// consoleOnTerminal opens the console of web1 on a terminal.
func consoleOnTerminal(t *testing.T) (cmd *exec.Cmd, master *os.File) {
	t.Helper()
	master, slave := openTerminal(t, 80)
	cmd = command(t, "vm", "console", "web1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	return cmd, master
}

// Every key goes to the VM, Ctrl-C too, but for the one that leaves.
func TestConsoleOnATerminal(t *testing.T) {
	cmd, master := consoleOnTerminal(t)
	sent := bufio.NewReader(master)
	await := func(text string) {
		t.Helper()
		got := ""
		for !strings.HasSuffix(got, text) {
			one, err := sent.ReadByte()
			if err != nil {
				t.Fatalf("after %q, without %q: %v", got, text, err)
			}
			got += string(one)
		}
	}
	await("console of web1; Ctrl-] leaves\r\n")
	await("word? ")
	if _, err := master.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	await("\x03")
	await("[web1 is on host-b now]\r\n")
	await("\r\nvm web1 is stopped\r\n")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestLeavingAConsole(t *testing.T) {
	cmd, master := consoleOnTerminal(t)
	if _, err := bufio.NewReader(master).ReadString('?'); err != nil {
		t.Fatal(err)
	}
	if _, err := master.WriteString("\x1d"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
