package lab

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// ownerEnv has this test program act as the owner of a lab: of one that will be
// killed, or of one whose first thread is inside when it closes the lab.
const (
	ownerEnv       = "GODWIT_TEST_LAB_OWNER"
	ownerKilled    = "killed"
	ownerElsewhere = "elsewhere"
)

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(ownerEnv) {
	case ownerKilled:
		err = own()
	case ownerElsewhere:
		err = ownFromInside()
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// own makes a lab with a process in it that leaves its parent, says what it
// made, and waits for its death.
func own() error {
	l, err := New(context.Background(), Config{Hosts: []string{"a"}})
	if err != nil {
		return err
	}
	cmd := l.Host("a").Command(context.Background(), "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!")
	pid, err := cmd.Output()
	if err != nil {
		return err
	}
	fmt.Println(l.Name(), strings.TrimSpace(string(pid)), l.Dir())
	_, err = os.Stdin.Read(make([]byte, 1)) // ends with the test, if not before
	return err
}

func TestSweepAfterOwnerWasKilled(t *testing.T) {
	needRoot(t)
	bystander := exec.Command("sleep", "1000")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = bystander.Process.Kill()
		_ = bystander.Wait()
	}()
	alive := newLab(t, "a")

	owner := exec.CommandContext(t.Context(), os.Args[0])
	owner.Env = append(os.Environ(), ownerEnv+"="+ownerKilled)
	owner.Stderr = os.Stderr
	if _, err := owner.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(line)
	name, pid, dir := words[0], words[1], words[2]
	info, err := load(name)
	if err != nil {
		t.Fatal(err)
	}
	if info.Dir != dir || info.Owner != owner.Process.Pid || len(info.Namespaces) != 2 {
		t.Errorf("recorded %+v", info)
	}

	if _, err := Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !running(pid) {
		t.Fatal("a lab was swept under its living owner")
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // killed, as it says

	// Another package's lab, begun at the same time, may be who sweeps it.
	if _, err := Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkGone(t, info)
	if running(pid) {
		t.Errorf("process %s is left", pid)
	}
	if !running(fmt.Sprint(bystander.Process.Pid)) {
		t.Error("a process outside was killed")
	}
	infos, err := List()
	if err != nil || !slices.ContainsFunc(infos, func(i Info) bool { return i.Name == alive.Name() }) {
		t.Errorf("the living lab is gone: %v %v", infos, err)
	}
}

// An owner that dies at the worst moment leaves a folder and nothing in it.
func TestSweepOfALabNotYetRecorded(t *testing.T) {
	needRoot(t)
	all, err := lockAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = os.Mkdir(folder("halfborn"), 0o700)
	all.release()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkGone(t, Info{Name: "halfborn"})
}
