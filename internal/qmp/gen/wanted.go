package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// wanted is the list of what to generate; its format is told in wanted.txt.
type wanted struct {
	commands []string
	events   []string
	open     map[string]bool     // commands with arguments beyond the schema
	variants map[string][]string // union's owner -> cases
	names    map[string]string   // path -> Go name
}

func readWanted(r io.Reader) (wanted, error) {
	w := wanted{open: make(map[string]bool), variants: make(map[string][]string), names: make(map[string]string)}
	lines := bufio.NewScanner(r)
	for number := 1; lines.Scan(); number++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		if err := w.add(fields[0], fields[1:]); err != nil {
			return w, fmt.Errorf("line %d: %w", number, err)
		}
	}
	return w, lines.Err()
}

func (w *wanted) add(kind string, args []string) error {
	switch {
	case kind == "command" && len(args) == 1:
		w.commands = append(w.commands, args[0])
	case kind == "open" && len(args) == 1:
		w.commands = append(w.commands, args[0])
		w.open[args[0]] = true
	case kind == "event" && len(args) == 1:
		w.events = append(w.events, args[0])
	case kind == "variants" && len(args) > 1:
		w.variants[args[0]] = args[1:]
	case kind == "type" && len(args) == 2:
		w.names[args[0]] = args[1]
	default:
		return fmt.Errorf("cannot read %q with %d words", kind, len(args))
	}
	return nil
}

// goName turns a QMP name into an exported Go name: "ram-total" is RAMTotal.
func goName(name string) string {
	var b strings.Builder
	for word := range strings.FieldsFuncSeq(strings.ToLower(name), isSeparator) {
		if initialism, ok := initialisms[word]; ok {
			b.WriteString(initialism)
			continue
		}
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}

func isSeparator(r rune) bool { return r == '-' || r == '_' || r == '.' || r == ' ' }

var initialisms = map[string]string{
	"acpi": "ACPI", "aio": "AIO", "bps": "BPS", "cpu": "CPU", "cpus": "CPUs", "fd": "FD", "fds": "FDs",
	"hmat": "HMAT", "id": "ID", "io": "IO", "iops": "IOPS", "ip": "IP", "ipv4": "IPv4", "ipv6": "IPv6",
	"irq": "IRQ", "kvm": "KVM", "mac": "MAC", "mbps": "Mbps", "nbd": "NBD", "nic": "NIC", "nvdimm": "NVDIMM",
	"pci": "PCI", "pid": "PID", "qemu": "QEMU", "qmp": "QMP", "qom": "QOM", "ram": "RAM", "rx": "Rx",
	"tls": "TLS", "uri": "URI", "uuid": "UUID", "vcpu": "VCPU", "vcpus": "VCPUs", "vfio": "VFIO", "vlan": "VLAN",
	"xbzrle": "XBZRLE",
}
