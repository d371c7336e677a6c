package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/image"
)

// some are cells for every run of all tests; "make faults" runs the others.
var some = []cell{
	{sigkill, targetQEMU, beforeCommit},
	{sigkill, targetAgent, afterCommit},
	{restart, allServers, copying},
	{sigkill, volumeServer, beforeCommit},
	{sigkill, sourceQEMU, preparing},
}

// trialWithin bounds a cell on a busy machine, with the tries that missed.
const trialWithin = 4 * time.Minute

func TestSomeCells(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a lab needs root: it makes network namespaces and taps")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("there is no qemu-system-x86_64; 'make setup' installs it")
	}
	img, err := image.Locate()
	if err != nil {
		t.Skipf("%v; 'make setup' builds it", err)
	}
	r := &runner{logs: t.TempDir(), out: t.Output(), config: fleetlab.Config{
		Image: img, Servers: 1, Etcd: 1, VolumeServers: []string{storageHost},
		Binary: build(t, "cmd/godwit"), EtcdProgram: build(t, "internal/lab/etcd"),
	}}
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	})
	for _, c := range some {
		t.Run(c.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), trialWithin)
			defer cancel()
			one, err := r.run(ctx, c)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(one)
			if !one.Ran {
				t.Errorf("it was not run: %s", one.Why)
			}
			for _, violation := range one.Violations {
				t.Error(violation)
			}
			if len(one.Violations) > 0 {
				t.Log(one.story)
			}
		})
	}
}

// build makes a program of this module and gives its path.
func build(t *testing.T, pkg string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), filepath.Base(pkg))
	command := exec.CommandContext(t.Context(), "go", "build", "-o", program, "godwit.dev/godwit/"+pkg)
	if text, err := command.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
	return program
}
