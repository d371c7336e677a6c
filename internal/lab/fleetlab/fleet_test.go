package fleetlab

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab"
)

// What works is tested with real programs by test/e2e; this is about what
// does not.

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
}

func TestProgramThatDiesIsReportedAndNothingIsLeft(t *testing.T) {
	needRoot(t)
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho cannot do \"$1\" >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		config Config
		says   string
	}{
		{Config{Binary: program}, "run the server: it has ended: cannot do server"},
		{Config{Binary: program, Etcd: 1, EtcdProgram: program}, "run etcd: it has ended: cannot do --listen"},
	} {
		test.config.Name, test.config.Hosts = "dies", []Host{{Name: "h1"}}
		_, err := Start(t.Context(), test.config)
		if fleet.CodeOf(err) != fleet.Failed || !strings.Contains(err.Error(), test.says) {
			t.Errorf("got %v, want %q", err, test.says)
		}
		infos, err := lab.List()
		if err != nil || slices.ContainsFunc(infos, func(i lab.Info) bool { return i.Name == "dies" }) {
			t.Errorf("the lab is left: %v %v", infos, err)
		}
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	needRoot(t)
	program := filepath.Join(t.TempDir(), "godwit")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := Start(ctx, Config{Binary: program, Hosts: []Host{{Name: "h1"}}})
	if err == nil || ctx.Err() == nil {
		t.Errorf("got %v before its time", err)
	}
}

func TestProcess(t *testing.T) {
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
	p := &Process{
		name: "it", home: l.Host("h1").Namespace, log: filepath.Join(l.Dir(), "log"), env: []string{"WORD=hello"},
		args: []string{"sh", "-c", "echo $WORD; exec sleep 1000"},
	}
	if err := p.Kill(); err == nil {
		t.Error("what does not run was killed")
	}
	var pids []int
	for _, end := range []func() error{p.Kill, p.Stop} {
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(); err == nil {
			t.Error("it was started twice")
		}
		exited := p.Exited()
		pids = append(pids, p.PID())
		if err := end(); err != nil {
			t.Error(err)
		}
		<-exited
		if p.PID() != 0 {
			t.Errorf("it has pid %d after its end", p.PID())
		}
	}
	if pids[0] == 0 || pids[0] == pids[1] {
		t.Errorf("pids %v", pids)
	}
}

func TestInventoryComparesByContent(t *testing.T) {
	if !(Inventory{}).Empty() {
		t.Error("nothing is not empty")
	}
	for _, one := range []Inventory{
		{QEMUs: []int{1}}, {Taps: []string{"gwt0"}}, {Folders: []string{"a.1"}}, {CPUsReserved: 1}, {MemoryReserved: 1},
	} {
		if one.Empty() || one.String() == (Inventory{}).String() {
			t.Errorf("%v passes for nothing", one)
		}
	}
}
