package server

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

func TestMigrationsThatCantBe(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1 := f.join("h1")
	f.join("h2", func(o *agentOptions) {
		o.hello = func(h *godwitv1.Hello) { h.Host.MemoryBytes = uint64(64 * fleet.MiB) }
	})
	f.join("h3", func(o *agentOptions) { o.hello = func(h *godwitv1.Hello) { h.Host.Machines = []string{"pc-q35-9.2"} } })
	f.running(h1, "web1")
	f.create(&godwitv1.CreateVMRequest{Name: "web2", Spec: smallSpec(), Stopped: true})
	cases := []struct {
		name, vm, target string
		code             fleet.Code
		cause, hint      string
	}{
		{"unknown VM", "web9", "", fleet.NotFound, "there is no VM of this name", "godwit vm list"},
		{"unknown host", "web1", "h9", fleet.NotFound, `there is no host "h9"`, "godwit host list"},
		{"stopped VM", "web2", "", fleet.Conflict, "it is stopped; only a running VM can be migrated", "godwit vm start web2"},
		{"the source itself", "web1", "h1", fleet.NoFit, "it is where the VM is now", "choose another host"},
		{"too small a host", "web1", "h2", fleet.NoFit, "64MiB of 64MiB memory are free, the VM needs 128MiB", "choose another host"},
		{"an older QEMU", "web1", "h3", fleet.NoFit, "no machine type pc-q35-10.0", "choose another host"},
		{"no host fits", "web1", "", fleet.NoFit, "none of the 3 hosts can take it", "godwit host list"},
	}
	for _, test := range cases {
		_, err := f.migrate(test.vm, test.target)
		if fleet.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.cause) || !strings.Contains(fleet.HintOf(err), test.hint) {
			t.Errorf("%s: %s: %s; hint %q", test.name, fleet.CodeOf(err), describe(err), fleet.HintOf(err))
		}
	}
	_, err := f.migrate("web1", "")
	var fields []string
	for _, field := range fieldsOf(err) {
		fields = append(fields, field.Path+": "+field.Problem)
	}
	want := []string{
		"h1: it is where the VM is now", "h2: 64MiB of 64MiB memory are free, the VM needs 128MiB",
		"h3: its QEMU 10.0.2 has no machine type pc-q35-10.0",
	}
	if !slices.Equal(fields, want) {
		t.Errorf("reasons\n%s", strings.Join(fields, "\n"))
	}
	f.checkPlace("web1", fleet.Owner{Host: "h1", Epoch: 1}, "", "h1")
	if list, err := f.moves.List(t.Context(), &godwitv1.ListMigrationsRequest{}); err != nil || len(list.GetMigrations()) != 0 {
		t.Errorf("refused migrations left records: %v, %v", list, err)
	}
}

func TestPolicyOfARequest(t *testing.T) {
	const memory = 4 * fleet.GiB
	cases := []struct {
		name  string
		asked *godwitv1.MigrationPolicy
		want  func(*migration.Policy)
		cause string
	}{
		{"defaults", nil, func(*migration.Policy) {}, ""},
		{"all of them", &godwitv1.MigrationPolicy{CopyLimitMs: 1000, SwitchLimitMs: 2000, BandwidthMax: 7, BlackoutMaxMs: 50},
			func(p *migration.Policy) {
				p.CopyMax, p.SwitchMax, p.BandwidthMax, p.BlackoutMax = time.Second, 2*time.Second, 7, 50*time.Millisecond
				p.Asked = []migration.PolicyName{migration.PolicyCopy, migration.PolicySwitch, migration.PolicyBlackout, migration.PolicyBandwidth}
			}, ""},
		{"negative time", &godwitv1.MigrationPolicy{CopyLimitMs: -1}, nil, "the time to copy must be between"},
		{"a negative time that overflows", &godwitv1.MigrationPolicy{CopyLimitMs: -9223372036855}, nil, "the time to copy must be between"},
		{"negative blackout", &godwitv1.MigrationPolicy{BlackoutMaxMs: -1}, nil, "the blackout must be between"},
		{"a blackout longer than the switch", &godwitv1.MigrationPolicy{SwitchLimitMs: 100}, nil, "a blackout of 300ms"},
		// As nanoseconds the first is 2^64 and some, the second -2^63 and less.
		{"a time that overflows", &godwitv1.MigrationPolicy{CopyLimitMs: 18446744073710}, nil, "the time to copy must be between"},
	}
	for _, test := range cases {
		got, err := policyOf(test.asked, memory)
		if test.want == nil {
			if fleet.CodeOf(err) != fleet.Invalid || !strings.Contains(err.Error(), test.cause) {
				t.Errorf("%s: %+v, %v", test.name, got, err)
			}
			continue
		}
		want := migration.DefaultPolicy(memory)
		test.want(&want)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", test.name, got, err)
		}
	}
}

func TestRequestsDuringAMigration(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	version := f.vm("web1").GetVersion()
	refused := map[string]func() error{
		"migrate":               func() error { _, err := f.migrate("web1", ""); return err },
		"migrate with a target": func() error { _, err := f.migrate("web1", "h2"); return err },
	}
	for name, call := range refused {
		if err := call(); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), fl.id) ||
			!strings.Contains(fleet.HintOf(err), "godwit migration cancel "+fl.id) || fleet.RetryAfterOf(err) <= 0 {
			t.Errorf("%s: %v, hint %q, retry after %v", name, err, fleet.HintOf(err), fleet.RetryAfterOf(err))
		}
	}
	// What a request demands beside the lock is asked before it costs a migration.
	err := call(f.vms.Delete(t.Context(), &godwitv1.DeleteVMRequest{Name: "web1"}))
	if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "it is running") {
		t.Errorf("delete: %v", err)
	}
	if got := f.vm("web1").GetVersion(); got != version {
		t.Errorf("a refused request has changed the VM's record")
	}
	// A stop cancels what has not committed, and then stops the VM.
	var group errgroup.Group
	group.Go(func() error {
		_, err := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: "web1", GraceMs: 5, Version: version})
		return err
	})
	fl.answer(h1, "resume_source")
	fl.answer(h2, "release_target")
	if err := group.Wait(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if m := fl.await(migration.Aborted); m.GetCause() != "cancelled by server: to stop the VM" {
		t.Errorf("cause %q", m.GetCause())
	}
	stop := h1.command()
	if stop.GetSubject() != "web1" || opOf(stop) != "stop_instance" || stop.GetEpoch() != 1 {
		t.Errorf("after the migration came %v", stop)
	}
	h1.report(stop, "web1", "exited", "")
	f.awaitPhase("web1", fleet.VMStopped)
	f.checkPlace("web1", fleet.Owner{Epoch: 2}, "")
}

// After the commit a stop waits for the end and meets the VM at the target.
func TestStopAfterTheCommit(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inRun)
	var group errgroup.Group
	group.Go(func() error {
		_, err := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: "web1"})
		return err
	})
	fl.finish(inRun)
	if err := group.Wait(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if stop := h2.command(); opOf(stop) != "stop_instance" || stop.GetEpoch() != 2 {
		t.Errorf("after the migration came %v", stop)
	}
}

func TestTwoMigrationsForOnePlace(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1 := f.join("h1")
	f.join("h2", func(o *agentOptions) {
		o.hello = func(h *godwitv1.Hello) { h.Host.MemoryBytes = uint64(200 * fleet.MiB) }
	})
	names := []string{"web1", "web2"}
	for _, name := range names {
		f.running(h1, name)
	}
	errs := make([]error, len(names))
	var group errgroup.Group
	for i, name := range names {
		group.Go(func() error {
			_, errs[i] = f.migrate(name, "")
			return nil
		})
	}
	_ = group.Wait()
	won := slices.Index(errs, nil)
	if won < 0 {
		t.Fatalf("neither got the place: %v", errs)
	}
	lost := 1 - won
	if fleet.CodeOf(errs[lost]) != fleet.NoFit || !strings.Contains(describe(errs[lost]), "h2: 72MiB of 200MiB memory are free") {
		t.Errorf("the other got %s", describe(errs[lost]))
	}
	f.checkPlace(names[lost], fleet.Owner{Host: "h1", Epoch: 1}, "", "h1")
	if _, memory := f.reserved("h2"); memory != uint64(128*fleet.MiB) {
		t.Errorf("reserved on h2: %d", memory)
	}
}

// Nobody can send a VM whose host's agent is away.
func TestMigrateFromAHostThatIsDown(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, _ := f.join("h1"), f.join("h2")
	f.running(h1, "web1")
	session := f.server.hub.session("h1")
	h1.close()
	<-session.finished
	_, err := f.moves.Create(t.Context(), &godwitv1.CreateMigrationRequest{Vm: "web1"})
	if fleet.CodeOf(err) != fleet.Unavailable || !strings.Contains(err.Error(), "host h1, where it is, is down") || fleet.HintOf(err) == "" {
		t.Errorf("it is %s", describe(err))
	}
}
