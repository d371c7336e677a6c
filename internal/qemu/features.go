package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
	"godwit.dev/godwit/internal/qmp/schema"
)

// probeTimeout bounds Probe when its context does not.
const probeTimeout = 30 * time.Second

// Features is what the QEMU can do that is installed on a host.
type Features struct {
	Abilities
	Machines  []Machine
	CPUModels []string // usable here with all their features, sorted
}

// Abilities is what a QEMU can do in a migration: one that is installed, or that
// of an instance, which may be older than what is installed by now.
type Abilities struct {
	Version      string   // with the distribution's own in parentheses
	Accel        string   // "kvm" or "tcg"
	Capabilities []string // of migration, sorted
	Schema       *schema.Schema
	// OnePass: a guest must be stopped before the first pass over its memory
	// ends. The emulator of QEMU 7.2 does not notice all writes after it has
	// once been asked for the written pages, and the copy is corrupt; that of
	// 10.0 does. KVM notices them in every version.
	OnePass bool
	CanHold bool // Outgoing.Hold works, and is used; else Capabilities lack what it needs
}

// Machine is a machine type.
type Machine struct {
	Name       string
	Alias      string // "" for none
	MaxVCPUs   int
	Deprecated bool
}

// Fleet gives what the host's record says of its QEMU.
func (f Features) Fleet() fleet.QEMUFeatures {
	r := fleet.QEMUFeatures{
		Version: f.Version, Accel: f.Accel, Aliases: make(map[string]string),
		CPUModels: slices.Clone(f.CPUModels), Capabilities: slices.Clone(f.Capabilities),
	}
	for _, machine := range f.Machines {
		r.Machines = append(r.Machines, machine.Name)
		if machine.Alias != "" {
			r.Aliases[machine.Alias] = machine.Name
		}
	}
	return r
}

// needs is what a QEMU must know, each with the first version that has it.
var needs = [...]struct {
	what  string
	since string
	known func(*schema.Schema) bool
}{
	{"command migrate-incoming", "2.3", func(s *schema.Schema) bool { return s.HasCommand("migrate-incoming") }},
	{"command migrate-continue", "2.11", func(s *schema.Schema) bool { return s.HasCommand("migrate-continue") }},
	{"migration capability events", "2.4", func(s *schema.Schema) bool { return s.HasMigrationCapability("events") }},
	{"migration capability return-path", "2.10", func(s *schema.Schema) bool { return s.HasMigrationCapability("return-path") }},
	{"migration capability pause-before-switchover", "2.11", func(s *schema.Schema) bool { return s.HasMigrationCapability("pause-before-switchover") }},
	{"migration capability multifd", "4.0", func(s *schema.Schema) bool { return s.HasMigrationCapability("multifd") }},
	{"migration parameter tls-authz", "4.0", func(s *schema.Schema) bool { return s.HasArgument("migrate-set-parameters", "tls-authz") }},
	{"object authz-simple", "4.0", func(s *schema.Schema) bool { return s.HasEnumValue("object-add", "qom-type", "authz-simple") }},
	{"object tls-creds-x509", "2.5", func(s *schema.Schema) bool { return s.HasEnumValue("object-add", "qom-type", "tls-creds-x509") }},
}

// Probe starts the QEMU without a machine and asks what it can do. Meanwhile it has
// the folder dir for itself, and removes it, with what a program has left there
// that was killed while it asked. Unsupported when the QEMU lacks something that
// Godwit needs.
func Probe(ctx context.Context, binary, dir string) (Features, error) {
	if _, err := exec.LookPath(binary); err != nil {
		return Features{}, &fleet.Error{Code: fleet.Unsupported, Op: "probe QEMU", Subject: binary, Cause: "it cannot be executed", Err: err,
			Hint: "install QEMU 7.2 or later: on Debian, package qemu-system-x86"}
	}
	f, err := probe(ctx, binary, dir)
	if err != nil {
		return Features{}, &fleet.Error{Code: fleet.Failed, Op: "probe QEMU", Subject: binary, Cause: "it does not answer as QEMU does", Err: err,
			Hint: "it must be a QEMU system emulator for x86-64, 7.2 or later, such as qemu-system-x86_64; look at: " + binary + " --version"}
	}
	return f, checkNeeds(binary, f.Version, f.Schema)
}

func probe(ctx context.Context, binary, dir string) (f Features, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return f, err
	}
	defer os.RemoveAll(dir)
	f.Accel = accelerator()
	// It has to end with this program, however that ends: with its thread, that is.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := launch(binary, dir, func(listener int) (*line, error) {
		var l line
		l.add("-machine", "none", "-accel", f.Accel, "-nodefaults", "-no-user-config", "-display", "none", "-S")
		l.addMonitor(listener)
		l.mortal = true
		return &l, nil
	})
	if err != nil {
		return f, err
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		err = errors.Join(err, p.kill(ending))
		p.release()
	}()
	client, err := greet(ctx, p, filepath.Join(dir, monitorSocket))
	if err != nil {
		return f, unanswered(ctx, p, dir, err)
	}
	defer client.Close()
	return f, f.ask(ctx, client)
}

// unanswered says what became of a program that has not greeted.
func unanswered(ctx context.Context, p *process, dir string, err error) error {
	if errors.Is(err, unix.ECONNREFUSED) {
		// The socket closes a moment before the process can be seen to end.
		select {
		case <-p.exited:
		case <-time.After(killTimeout):
		case <-ctx.Done():
		}
	}
	words := "said nothing"
	if text := lastWords(dir); text != "" {
		words = "said: " + text
	}
	select {
	case <-p.exited:
		return fmt.Errorf("it ended at once (%v) and %s", p.child.ProcessState, words)
	default:
		return fmt.Errorf("it runs, and %s: %w", words, err)
	}
}

// versionOf gives the version as QEMU greets with it.
func versionOf(client *qmp.Client) string {
	greeting := client.Greeting()
	version := fmt.Sprintf("%d.%d.%d", greeting.Major, greeting.Minor, greeting.Micro)
	if greeting.Package != "" {
		version += " (" + greeting.Package + ")"
	}
	return version
}

// ask fills in what the monitor tells.
func (f *Features) ask(ctx context.Context, client *qmp.Client) (err error) {
	if f.Abilities, err = askAbilities(ctx, client, f.Accel); err != nil {
		return err
	}
	machines, err := qmp.QueryMachines(ctx, client, qmp.QueryMachinesArgs{})
	if err != nil {
		return err
	}
	for _, one := range machines {
		machine := Machine{Name: one.Name, MaxVCPUs: int(one.CPUMax), Deprecated: one.Deprecated}
		if one.Alias != nil {
			machine.Alias = *one.Alias
		}
		f.Machines = append(f.Machines, machine)
	}
	models, err := qmp.QueryCPUDefinitions(ctx, client)
	for _, model := range models {
		if len(model.UnavailableFeatures) == 0 {
			f.CPUModels = append(f.CPUModels, model.Name)
		}
	}
	slices.SortFunc(f.Machines, func(a, b Machine) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(f.CPUModels)
	return err
}

// askAbilities asks a QEMU that runs guests, or would, by an accelerator.
func askAbilities(ctx context.Context, client *qmp.Client, accel string) (a Abilities, err error) {
	a.Version, a.Accel = versionOf(client), accel
	if a.Schema, err = qmp.ReadSchema(ctx, client); err != nil {
		return a, err
	}
	// In between nothing was tried, so what came with 8.2 decides.
	a.OnePass = accel == "tcg" && !a.Schema.HasArgument("migrate-set-parameters", "avail-switchover-bandwidth")
	a.CanHold = a.Schema.HasMigrationCapability(string(capabilityHold)) && !a.OnePass
	capabilities, err := qmp.QueryMigrateCapabilities(ctx, client)
	for _, capability := range capabilities {
		if capability.Capability != capabilityHold || a.CanHold {
			a.Capabilities = append(a.Capabilities, string(capability.Capability))
		}
	}
	slices.Sort(a.Capabilities)
	return a, err
}

// checkNeeds names what is missing.
func checkNeeds(binary, version string, known *schema.Schema) error {
	for _, need := range needs {
		if !need.known(known) {
			return &fleet.Error{Code: fleet.Unsupported, Op: "use QEMU", Subject: binary + " " + version, Cause: "it lacks the " + need.what,
				Hint: "QEMU " + need.since + " has it; Godwit is tested with 7.2 and 10.0"}
		}
	}
	return nil
}

// accelerator gives "kvm" if the CPU virtualizes and the device answers, else
// "tcg". Both are asked, because a kernel may offer the device on a CPU
// without extensions, for guests made for that, which others do not survive.
func accelerator() string {
	if runtime.GOARCH != "arm64" && !hasVirtualization("/proc/cpuinfo") {
		return "tcg"
	}
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg"
	}
	defer device.Close()
	raw, err := device.SyscallConn()
	if err != nil {
		return "tcg"
	}
	accel := "tcg"
	_ = raw.Control(func(fd uintptr) {
		const getAPIVersion, apiVersion = 0xAE00, 12 // KVM_GET_API_VERSION, Documentation/virt/kvm/api.rst 4.1
		if version, err := unix.IoctlRetInt(int(fd), getAPIVersion); err == nil && version == apiVersion {
			accel = "kvm"
		}
	})
	return accel
}

// hasVirtualization reads the first processor's flags.
func hasVirtualization(cpuinfo string) bool {
	text, err := os.ReadFile(cpuinfo)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if name, flags, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "flags" {
			list := strings.Fields(flags)
			return slices.Contains(list, "vmx") || slices.Contains(list, "svm")
		}
	}
	return false
}
