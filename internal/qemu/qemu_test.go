package qemu_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qemu"
)

// installed is the QEMU of the host.
const installed = "qemu-system-x86_64"

// patience bounds every wait for a real QEMU; a test that reaches it fails.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if dir := os.Getenv(startInChild); dir != "" {
		os.Exit(startAndLeave(dir))
	}
	if binary := os.Getenv(probeInChild); binary != "" {
		_, _ = qemu.Probe(context.Background(), binary, probeDir(filepath.Dir(binary)))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// eachQEMU runs the test with every QEMU that there is.
func eachQEMU(t *testing.T, test func(t *testing.T, binary string)) {
	t.Helper()
	for name, binary := range map[string]string{"installed": installed, "7.2": os.Getenv("GODWIT_QEMU72")} {
		t.Run(name, func(t *testing.T) {
			if binary == "" {
				t.Skip("GODWIT_QEMU72 names no QEMU 7.2")
			}
			if _, err := exec.LookPath(binary); err != nil {
				t.Skip("no ", binary)
			}
			t.Parallel()
			test(t, binary)
		})
	}
}

// config describes the smallest instance: firmware that finds nothing to boot.
func config(t *testing.T, binary string) qemu.Config {
	t.Helper()
	// Not t.TempDir: it holds the test's name, and socket paths are short.
	dir, err := os.MkdirTemp("", "qemu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return qemu.Config{
		VM: "web1", UID: "6b1d5a0c-6d3f-4f0e-9a55-0c5f0d1f8a11", Epoch: 1, Dir: dir, Binary: binary,
		Accel: "tcg", Machine: "pc-i440fx-7.2", CPUModel: "qemu64", VCPUs: 1, Memory: 64 * fleet.MiB,
	}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// start starts an instance that ends with the test.
func start(t *testing.T, c qemu.Config) *qemu.Instance {
	t.Helper()
	i, err := qemu.Start(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	endWith(t, i)
	return i
}

func endWith(t *testing.T, i *qemu.Instance) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := i.Kill(ctx); err != nil {
			t.Error(err)
		}
		i.Close()
	})
}

func status(t *testing.T, i *qemu.Instance, want qemu.RunState) {
	t.Helper()
	got, err := i.Status(within(t))
	if err != nil || got != want {
		t.Errorf("state %q, %v; want %q", got, err, want)
	}
}

// settled is status for a source that has just said that it completed: its state
// follows a moment later.
func settled(t *testing.T, i *qemu.Instance, want qemu.RunState) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		if got, err := i.Status(within(t)); err != nil || got == want {
			if err != nil {
				t.Error(err)
			}
			return
		}
		select {
		case <-tick.C:
		case <-late:
			status(t, i, want)
			return
		}
	}
}

func resume(t *testing.T, i *qemu.Instance) {
	t.Helper()
	if _, err := i.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	status(t, i, "running")
}

// await takes events until one is as wanted, and gives it.
func await(t *testing.T, events *qemu.Subscription, want qemu.Event) qemu.Event {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case event, open := <-events.Events():
			if !open {
				t.Fatalf("waiting for %v: %v", want, events.Err())
			}
			if event.Kind == want.Kind && event.Status == want.Status && event.Pass >= want.Pass {
				return event
			}
			if event.Status == qemu.StatusFailed {
				t.Fatalf("waiting for %v: the migration failed", want)
			}
		case <-timeout:
			t.Fatalf("no event %v", want)
		}
	}
}

func changed(s qemu.Status) qemu.Event { return qemu.Event{Kind: qemu.MigrationChanged, Status: s} }

func code(t *testing.T, err error, want fleet.Code) {
	t.Helper()
	if fleet.CodeOf(err) != want {
		t.Errorf("error %v has code %q, want %q", err, fleet.CodeOf(err), want)
	}
}
