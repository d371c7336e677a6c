package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/wire"
)

// startWithin bounds the start of a QEMU until it answers.
const startWithin = 30 * time.Second

// startAlone starts a VM that runs nowhere yet.
func (m *machine) startAlone(ctx context.Context, start *godwitv1.StartInstance) *godwitv1.Report {
	want := start.GetInstance()
	m.mu.Lock()
	instance := m.instance
	m.mu.Unlock()
	switch {
	case !m.kept().TakesStart(m.mayHaveRun(ctx)):
		err := errOtherMigration("start", m)
		m.agent.startsNever(want, err)
		return m.instanceReport(fleet.InstanceExited, err.Error())
	case instance == nil:
		if err := m.agent.spent.check(m.uid, m.key.epoch); err != nil { // and not all of it could be removed
			return m.instanceReport(fleet.InstanceExited, err.Error())
		}
	case instance.Ended():
		return m.instanceReport(fleet.InstanceExited, instance.ExitCause())
	default:
		return m.runningReport("")
	}
	err := m.launchAlone(ctx, start)
	switch {
	case ctx.Err() != nil: // the next agent is told again, and takes up what is left
		return nil
	case err == nil:
		return m.runningReport("")
	}
	m.agent.log.Warn("an instance did not start", "vm", m.key.vm, "error", err)
	m.agent.startsNever(want, err)
	report := m.endReport(err, m.discard(ctx))
	if !m.hasEnded() {
		m.mu.Lock()
		m.ending = false // that it ends will be news
		m.mu.Unlock()
		go m.adoptLater(m.life)
	}
	return report
}

func (m *machine) launchAlone(ctx context.Context, start *godwitv1.StartInstance) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	gate := network.Gate{Mode: network.Pass, Epoch: m.key.epoch}
	if err := m.launch(ctx, start.GetInstance(), gate, start.GetVolumeKey()); err != nil {
		return err
	}
	if err := m.activate(ctx, m.key.epoch); err != nil {
		return err
	}
	_, err := m.instance.Resume(ctx)
	return err
}

// hasEnded, of the worker or with mu held, tells whether the instance is known not
// to run.
func (m *machine) hasEnded() bool {
	return m.unadopted == nil && (m.instance == nil || m.instance.Ended())
}

// launch makes the folder, the ports and the instance, which waits for state if its
// gate is closed. What it has made when it fails is for discard to remove.
func (m *machine) launch(ctx context.Context, want *godwitv1.Instance, gate network.Gate, volumeKey []byte) error {
	m.setLaunching(true)
	defer m.setLaunching(false)
	spec, err := wire.DecodeSpec(want.GetSpec())
	if err != nil {
		return err
	}
	if err := m.filesAnswer(ctx, spec); err != nil {
		return err
	}
	if err := m.setVolumes(spec, want.GetVolumeServers(), volumeKey); err != nil {
		return err
	}
	if err := durable.MakeFolder(m.dir, 0o700); err != nil {
		return fmt.Errorf("make the instance's folder: %w", err)
	}
	if err := m.openDisks(ctx, spec, fleet.Epoch(want.GetLocalEpoch()), gate.Mode == network.Closed); err != nil {
		return err
	}
	if err := m.removePorts(); err != nil { // of a start that an agent's end cut off
		return err
	}
	if err := m.makePorts(spec, want.GetNetworks(), gate); err != nil {
		return err
	}
	config, err := m.qemuConfig(spec, gate.Mode == network.Closed)
	if err != nil {
		return err
	}
	defer closeVhost(config.NICs)
	instance, err := qemu.Start(ctx, config)
	if err != nil {
		return volumeAway(spec, config, err)
	}
	m.mu.Lock()
	m.instance = instance
	m.mu.Unlock()
	go m.watchEnd(m.life, instance)
	go m.outliveErrors(m.life, instance)
	go m.followCards(m.life, instance)
	return nil
}

// setLaunching tells the sessions that open meanwhile that the instance has not
// ended, but is not there yet.
func (m *machine) setLaunching(launching bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.launching = launching
}

// checkFiles finds out before anything is made that a file can't be reached, or not be
// written that has to be.
func checkFiles(spec fleet.VMSpec) error {
	for _, disk := range spec.Disks {
		if disk.Kind == fleet.DiskVolume || disk.Kind == fleet.DiskLocal {
			continue
		}
		how := os.O_RDWR
		if disk.ReadOnly {
			how = os.O_RDONLY
		}
		if err := checkFile("disk "+disk.Name, disk.Path, how); err != nil {
			return err
		}
	}
	if spec.Boot == nil {
		return nil
	}
	if err := checkFile("kernel", spec.Boot.Kernel, os.O_RDONLY); err != nil || spec.Boot.Initrd == "" {
		return err
	}
	return checkFile("initrd", spec.Boot.Initrd, os.O_RDONLY)
}

func checkFile(what, path string, how int) error {
	file, err := os.OpenFile(path, how, 0)
	if err == nil {
		return file.Close()
	}
	hint := "every host that may run the VM must see this file under the same path"
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		hint = "every host that may run the VM must be able to write this file: mount its file system read-write, or make the disk read-only"
	}
	return &fleet.Error{Code: fleet.Unavailable, Op: "open", Subject: what, Err: err, Hint: hint}
}

func (m *machine) qemuConfig(spec fleet.VMSpec, incoming bool) (qemu.Config, error) {
	config := qemu.Config{
		VM: m.key.vm, UID: m.uid, Epoch: m.key.epoch, Dir: m.dir, Boot: m.agent.config.BootID,
		Binary: m.agent.config.QEMU, Accel: m.agent.features.Accel,
		Machine: spec.Machine, CPUModel: cmp.Or(spec.CPUModel, "qemu64"), VCPUs: spec.CPUs, Memory: spec.Memory,
		RootPorts: spec.RootPorts, Incoming: incoming, Known: m.agent.features.Abilities,
	}
	if spec.Boot != nil {
		config.Kernel, config.Initrd, config.Cmdline = spec.Boot.Kernel, spec.Boot.Initrd, spec.Boot.Cmdline
	}
	for _, disk := range spec.Disks {
		one, creds, err := m.qemuDisk(disk)
		if err != nil {
			return config, err
		}
		config.Disks, config.VolumeCreds = append(config.Disks, one), cmp.Or(config.VolumeCreds, creds)
	}
	for i, port := range m.ports {
		nic, err := qemuNIC(port, m.record.Ports[i].MTU, spec.Ports[i].Slot)
		if err != nil {
			return config, err
		}
		config.NICs = append(config.NICs, nic)
	}
	return config, nil
}

// qemuDisk gives a disk as QEMU is told of it, and the folder of credentials that it
// needs.
func (m *machine) qemuDisk(disk fleet.Disk) (one qemu.Disk, creds string, err error) {
	one = qemu.Disk{Name: disk.Name, Path: disk.Path, Format: disk.Format, ReadOnly: disk.ReadOnly, Slot: disk.Slot}
	if disk.Kind == fleet.DiskLocal {
		one.Path, one.Local = m.localDisk(disk), true
	}
	if disk.Kind != fleet.DiskVolume {
		return one, "", nil
	}
	if one.Volume, err = m.record.Volumes.qemuVolume(disk, m.key.epoch); err == nil {
		creds, err = m.credentials()
	}
	return one, creds, err
}

// qemuNIC gives a port as QEMU is told of it; closeVhost has to follow.
func qemuNIC(port *port, mtu int, slot fleet.Slot) (qemu.NIC, error) {
	nic := qemu.NIC{Name: port.Name, MAC: port.MAC, MTU: mtu, FDs: port.tap.FDs(), Slot: slot}
	vhost, err := network.OpenVhost(len(nic.FDs))
	if err != nil && fleet.CodeOf(err) != fleet.Unsupported {
		return nic, err
	}
	nic.VhostFDs = vhost // none where the host has no vhost-net
	return nic, nil
}

// closeVhost closes the agent's copies; QEMU has its own.
func closeVhost(nics []qemu.NIC) {
	for _, nic := range nics {
		for _, fd := range nic.VhostFDs {
			_ = unix.Close(fd) // a descriptor that was only passed on
		}
	}
}

// stop ends an instance: by the guest if there is time for it, else at once.
func (m *machine) stop(ctx context.Context, graceMs int64) *godwitv1.Report {
	if m.unadopted != nil && graceMs > 0 {
		return m.runningReport(fmt.Sprintf("its guest can't be told to power off, and a stop with --grace 0s ends it at once: %v", m.unadopted))
	}
	m.mu.Lock()
	m.ending = true
	instance := m.instance
	m.mu.Unlock()
	if instance != nil && graceMs > 0 && instance.Powerdown(ctx) == nil {
		grace := time.NewTimer(time.Duration(graceMs) * time.Millisecond)
		select {
		case <-instance.Exited():
		case <-grace.C:
		case <-m.hurry:
		case <-ctx.Done():
		}
		grace.Stop()
	}
	if ctx.Err() != nil { // the guest keeps its time: the next agent is told again
		return nil
	}
	return m.endReport(nil, m.discard(ctx))
}

// hurryUp ends the waiting of a stop for its guest.
func (m *machine) hurryUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.hurry:
	default:
		close(m.hurry)
	}
}

// forget removes an instance that the server has proven stale, or what one that
// has ended has left, unless it is another one since that was proven.
func (m *machine) forget(ctx context.Context, want *godwitv1.ForgetInstance) (done bool) {
	why := m.kept().Spared(m.state(ctx), want.GetEnded(), want.GetMigration())
	if why != "" {
		m.agent.log.Warn("an instance that a server has to be removed stays", "vm", m.key.vm, "epoch", m.key.epoch, "why", why)
		return false
	}
	m.agent.log.Info("a stale or ended instance is removed", "vm", m.key.vm, "epoch", m.key.epoch)
	if err := m.discard(ctx); err != nil {
		m.agent.log.Error("a stale or ended instance could not be removed", "vm", m.key.vm, "error", err)
		return false
	}
	return true
}

// discard ends the instance and removes all that belongs to it here. When ctx
// has ended it removes nothing: what a step that was cut off has left, such as
// frames in a tap, is for the next agent.
func (m *machine) discard(ctx context.Context) error {
	neverRan := m.neverRan(ctx)
	if err := m.kill(ctx); err != nil {
		return err
	}
	m.endCopy() // it uses the taps
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.spend(); err != nil {
		return err
	}
	if err := m.dropDisks(neverRan); err != nil {
		return err
	}
	err := m.unclaim() // before the taps go, or frames would get lost
	err = errors.Join(err, m.removePorts())
	if left := os.RemoveAll(m.dir); left != nil {
		return errors.Join(err, left)
	}
	m.agent.remove(m) // only now: the next one of its key has the same folder
	return err
}

// neverRan: it was a target, and certainly ran no instruction.
func (m *machine) neverRan(ctx context.Context) bool {
	return m.record.Role == refused || m.record.Role == arriving && !m.mayHaveRun(ctx)
}

// spend remembers the epoch of an instance that may have run.
func (m *machine) spend() error {
	switch {
	case m.record.Role == arriving, m.record.Role == refused:
		return nil
	case m.uid == "": // its record is lost
		return nil
	}
	return m.agent.spent.note(m.uid, m.key.epoch, "")
}

// killWithin bounds the wait for the end of a process that was killed.
const killWithin = 10 * time.Second

// kill ends the instance's process and waits for its end.
func (m *machine) kill(ctx context.Context) error {
	m.decide()
	ctx, cancel := context.WithTimeout(ctx, killWithin)
	defer cancel()
	m.mu.Lock()
	m.ending = true
	instance := m.instance
	m.mu.Unlock()
	if instance == nil {
		return m.killProcess(ctx)
	}
	if err := instance.Kill(ctx); err != nil {
		return err
	}
	return instance.Close()
}

// killProcess ends an instance that is not held: it could not be taken over, or
// its start has failed. What it leaves can be taken over.
func (m *machine) killProcess(ctx context.Context) error {
	if err := qemu.Kill(ctx, m.dir, m.agent.config.BootID); err != nil {
		m.loseHold(err)
		return err
	}
	if m.unadopted == nil {
		return nil
	}
	return m.adopt(ctx)
}

func (a *Agent) instanceDir(key machineKey) string {
	return filepath.Join(a.config.Dir, "instances", fmt.Sprintf("%s.%d", key.vm, key.epoch))
}
