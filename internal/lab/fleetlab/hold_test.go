package fleetlab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"godwit.dev/godwit/internal/lab"
)

func TestPause(t *testing.T) {
	needRoot(t)
	l, err := lab.New(t.Context(), lab.Config{Hosts: []string{"h1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	p := &Process{name: "it", home: l.Host("h1").Namespace, log: filepath.Join(l.Dir(), "log"), args: []string{"sleep", "1000"}}
	if p.Pause() == nil || p.Continue() == nil {
		t.Error("what does not run was paused or continued")
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		do   func() error
		want bool
	}{{p.Pause, true}, {p.Continue, false}, {p.Pause, true}} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := paused(t, p.PID()); got != step.want {
			t.Errorf("paused is %v, want %v", got, step.want)
		}
	}
	if err := p.Kill(); err != nil { // also while it is paused
		t.Error(err)
	}
}

// paused tells whether the kernel holds a process (proc_pid_stat(5), "state").
func paused(t *testing.T, pid int) bool {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(rest, "T")
}
