package agent

import (
	"context"
	"slices"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/qmp"
)

// What the QEMU of an instance can do counts for it, and is told of it: what is
// installed is another one by now.
func TestAnotherQEMUIsInstalled(t *testing.T) {
	m := newMove(t)
	own := m.source.agent.features.Abilities
	if !own.CanHold {
		t.Skipf("QEMU %s cannot be held: nothing tells how it is treated", own.Version)
	}
	for _, h := range []*testHost{m.source, m.target} {
		h.agent.features.Abilities = qemu.Abilities{Version: "7.2.0", Accel: own.Accel, OnePass: true}
	}
	m.source.shut()
	m.source.reopen()
	hello := m.source.hello()
	if got := hello.GetHost().GetQemuVersion(); got != "7.2.0" {
		t.Errorf("the host has QEMU %s", got)
	}
	checkQEMU(t, "hello", hello.GetInstances()[0], own)

	prepared := m.target.do(m.prepareCommand()).GetTargetPrepared()
	m.port = prepared.GetPort()
	checkQEMU(t, "the target", prepared, own)
	m.fleet.onCommit(func(context.Context, *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		return nil, refusal()
	})
	m.copyUntilSwitch()
	capabilities, err := qmp.QueryMigrateCapabilities(t.Context(), m.source.instance(testVM, 1).Monitor())
	if err != nil || !slices.Contains(capabilities, qmp.MigrationCapabilityStatus{Capability: qmp.MigrationCapabilitySwitchoverAck, State: true}) {
		t.Errorf("the source is not held: %v, %v", capabilities, err)
	}
}

// checkQEMU compares what is told of an instance's QEMU with what it can do.
func checkQEMU(t *testing.T, what string, told interface {
	GetQemuVersion() string
	GetMigrationCapabilities() []string
}, want qemu.Abilities) {
	t.Helper()
	if told.GetQemuVersion() != want.Version || !slices.Equal(told.GetMigrationCapabilities(), want.Capabilities) {
		t.Errorf("%s: told of QEMU %q with %v, want %q with %v",
			what, told.GetQemuVersion(), told.GetMigrationCapabilities(), want.Version, want.Capabilities)
	}
}

// An agent tells of the QEMU of what it has started, and of what it has adopted.
func TestTellQEMU(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	own := h.agent.features.Abilities
	started := h.do(startCommand(1, firmware(1))).GetInstance()
	checkQEMU(t, "started", started, own)
	if again := h.do(startCommand(2, firmware(1))).GetInstance(); again.GetQemuVersion() == "" {
		t.Errorf("asked again, it says %v", again)
	}
	h.stop()
	h.start()
	checkQEMU(t, "adopted", h.hello().GetInstances()[0], own)
	ended := h.do(stopCommand(3, 1, 0)).GetInstance()
	if ended.GetState() != "exited" || ended.GetQemuVersion() != "" {
		t.Errorf("stop: %v", ended)
	}
}
