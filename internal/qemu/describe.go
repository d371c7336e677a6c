package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

// Describe asks QEMU what its guest sees of the machine. It is the same for a source
// that runs and for its target, before and after that has loaded, if the guest can
// tell no difference. It takes some milliseconds, in which the guest runs.
func (i *Instance) Describe(ctx context.Context) (fleet.Machine, error) {
	d := description{i: i, ctx: ctx, m: fleet.Machine{}}
	d.add(fleet.MachineType, strings.TrimSuffix(d.text("/machine", "type"), "-machine"))
	d.memory()
	d.cpus()
	d.cards(d.rootBus())
	if d.err != nil {
		return nil, i.wrap("describe", d.err)
	}
	return d.m, nil
}

// description is a machine that is being asked for; after an error nothing more is.
type description struct {
	i   *Instance
	ctx context.Context
	m   fleet.Machine
	err error
}

func (d *description) add(field, value string) { d.m[field] = value }

func (d *description) ask(command string, args, result any) {
	if d.err == nil {
		d.err = d.i.monitor.Execute(d.ctx, command, args, result)
	}
}

// value gives a property as QEMU says it, in JSON.
func (d *description) value(object, property string) (raw json.RawMessage) {
	d.ask("qom-get", qmp.QOMGetArgs{Path: object, Property: property}, &raw)
	return raw
}

// text gives a property that is a word or a number.
func (d *description) text(object, property string) string {
	raw := d.value(object, property)
	var word string
	if json.Unmarshal(raw, &word) == nil {
		return word
	}
	return string(raw)
}

func (d *description) memory() {
	var sizes struct {
		Base    uint64 `json:"base-memory"`
		Plugged uint64 `json:"plugged-memory"`
	}
	d.ask("query-memory-size-summary", nil, &sizes)
	d.add(fleet.MachineRAM, exact(fleet.Bytes(sizes.Base+sizes.Plugged)))
}

// exact gives an amount without rounding it.
func exact(b fleet.Bytes) string {
	text, _ := b.MarshalText() // it cannot fail
	return string(text)
}

func (d *description) cpus() {
	var cpus []struct {
		Path string `json:"qom-path"`
	}
	d.ask("query-cpus-fast", nil, &cpus)
	d.add(fleet.MachineVCPUs, fmt.Sprint(len(cpus)))
	if d.err != nil || len(cpus) == 0 {
		return
	}
	first := cpus[0].Path
	d.add(fleet.MachineCPU, strings.TrimSuffix(d.text(first, "type"), "-x86_64-cpu"))
	d.cpuBits(first)
	d.cpuModel(d.text(first, "phys-bits"))
}

// Bits that follow from the number of vCPUs. QEMU 7.2 sets them when the guest asks,
// and later ones when the CPU is made: HTT and CmpLegacy.
var countBits = map[string]uint32{"1.EDX": 1 << 28, "80000001.ECX": 1 << 1}

// cpuBits adds the CPUID bits that the guest's CPU has, by leaf, subleaf and register.
func (d *description) cpuBits(cpu string) {
	var words []struct {
		Leaf     uint32  `json:"cpuid-input-eax"`
		Subleaf  *uint32 `json:"cpuid-input-ecx"`
		Register string  `json:"cpuid-register"`
		Bits     uint32  `json:"features"`
	}
	if raw := d.value(cpu, "feature-words"); d.err == nil {
		d.err = json.Unmarshal(raw, &words)
	}
	var list []string
	for _, word := range words {
		name := fmt.Sprintf("%X", word.Leaf)
		if word.Subleaf != nil {
			name += fmt.Sprintf(".%d", *word.Subleaf)
		}
		name += "." + word.Register
		if bits := word.Bits &^ countBits[name]; bits != 0 { // an older QEMU does not know all words
			list = append(list, fmt.Sprintf("%s=%08x", name, bits))
		}
	}
	slices.Sort(list)
	d.add(fleet.MachineWords, strings.Join(list, " "))
}

// cpuIdentity is what a guest reads of its CPU beside the flags.
var cpuIdentity = [...]string{"vendor", "family", "model", "stepping", "level", "xlevel"}

// cpuModel adds what QEMU makes of the model: its identity, and the names of what is on.
func (d *description) cpuModel(addressBits string) {
	name, own, _ := strings.Cut(d.i.config.CPUModel, ",")
	model := map[string]any{"name": name}
	if props := modelProps(own); len(props) > 0 {
		model["props"] = props
	}
	var expanded struct {
		Model struct {
			Props map[string]any `json:"props"`
		} `json:"model"`
	}
	d.ask("query-cpu-model-expansion", map[string]any{"type": "full", "model": model}, &expanded)
	var on []string
	for flag, value := range expanded.Model.Props {
		if value == true {
			on = append(on, flag)
		}
	}
	slices.Sort(on)
	d.add(fleet.MachineFlags, strings.Join(on, " "))
	identity := []string{"phys-bits=" + addressBits}
	for _, property := range cpuIdentity {
		identity = append(identity, fmt.Sprintf("%s=%v", property, expanded.Model.Props[property]))
	}
	d.add("CPU identity", strings.Join(identity, " "))
}

// modelProps reads what follows a model on the command line: "+avx,-sse3".
func modelProps(text string) map[string]bool {
	props := map[string]bool{}
	for flag := range strings.SplitSeq(text, ",") {
		if name, on := strings.CutPrefix(flag, "+"); on {
			props[name] = true
		} else if name, off := strings.CutPrefix(flag, "-"); off {
			props[name] = false
		}
	}
	return props
}

// rootBus adds what is on the root bus: the machine's own devices, and the ports that
// cards are in, and gives the names of those that have one. What is behind a port a
// guest's firmware has numbered, and a target before it has loaded does not show.
func (d *description) rootBus() (named []string) {
	var buses []qmp.PCIBus
	d.ask("query-pci", nil, &buses)
	for _, bus := range buses {
		for _, device := range bus.Devices {
			text := fmt.Sprintf("%04x:%04x %s", device.ID.Vendor, device.ID.Device, device.QdevID)
			d.add(fmt.Sprintf("PCI %02x:%02x.%x", bus.Bus, device.Slot, device.Function), strings.TrimSpace(text))
			named = append(named, device.QdevID)
		}
	}
	return named
}

// cards adds the devices that have names, those that are not on the root bus with
// their places.
func (d *description) cards(onRoot []string) {
	const all = "/machine/peripheral"
	var devices []qmp.QOMProperty
	d.ask("qom-list", qmp.QOMListArgs{Path: all}, &devices)
	for _, device := range devices {
		kind, isDevice := strings.CutPrefix(strings.TrimSuffix(device.Type, ">"), "child<")
		if !isDevice {
			continue
		}
		object := path.Join(all, device.Name)
		if !slices.Contains(onRoot, device.Name) {
			d.place(device.Name, kind, object)
		}
		if strings.HasPrefix(kind, "virtio-net-") {
			d.nic(strings.TrimSuffix(device.Name, "-card"), object)
		}
	}
	d.disks()
}

func (d *description) place(name, kind, object string) {
	var number int
	if raw := d.value(object, "addr"); d.err == nil {
		d.err = json.Unmarshal(raw, &number)
	}
	bus := path.Base(d.text(object, "parent_bus"))
	d.add("device "+name, fmt.Sprintf("%s@%s:%02x.%x", kind, bus, number>>3, number&7))
}

func (d *description) nic(name, object string) {
	field := fleet.MachineNIC + name + " "
	d.add(field+"MAC", d.text(object, "mac"))
	d.add(field+"MTU", d.text(object, "host_mtu"))
	d.add(field+"interrupts", d.text(object, "vectors")) // two for each queue, and two more
	d.add(field+"ring", d.text(object, "rx_queue_size"))
}

func (d *description) disks() {
	var blocks []qmp.BlockInfo
	d.ask("query-block", nil, &blocks)
	for _, block := range blocks {
		if block.Qdev == nil || block.Inserted == nil {
			continue
		}
		object := strings.TrimSuffix(*block.Qdev, "/virtio-backend")
		serial := d.text(object, "serial")
		if serial == "" {
			serial = path.Base(object)
		}
		field := fleet.MachineDisk + serial
		access := "read-write"
		if block.Inserted.Ro {
			access = "read-only"
		}
		d.add(field+" access", access)
		d.add(field+" device", path.Base(object))
		d.add(field+" format", block.Inserted.Drv)
		if volume := exportOf(block.Inserted.Image.Filename); volume != "" {
			d.add(field+" volume", volume) // and that is of one size, though a source may not know yet that it was grown
		} else {
			d.add(field+fleet.MachineSize, exact(fleet.Bytes(block.Inserted.Image.VirtualSize)))
		}
	}
}

// exportOf gives the volume that a node is, by the name that QEMU has for it; "" if it
// is none. The epoch, which differs between a source and its target, is left out.
func exportOf(filename string) string {
	export := ""
	if text, isJSON := strings.CutPrefix(filename, "json:"); isJSON {
		var node struct {
			Export string
			File   struct{ Export string }
		}
		if json.Unmarshal([]byte(text), &node) != nil {
			return ""
		}
		export = node.Export + node.File.Export
	} else if where, err := url.Parse(filename); err == nil && strings.HasPrefix(where.Scheme, "nbd") {
		export = strings.TrimPrefix(where.Path, "/")
	}
	volume, _, _ := strings.Cut(export, "@")
	return volume
}
