package witness

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// MaxDiskRate is how many records a second a guest can be told to write.
const MaxDiskRate = 10_000

// KernelArgs is what every guest of the lab is booted with: a console on the
// serial port, and nothing that costs time or precision under emulation.
// A panic reboots at once, so QEMU must run with -no-reboot.
const KernelArgs = "console=ttyS0 quiet tsc=reliable no_timer_check mitigations=off panic=-1"

// Args tells a guest what to do. It is passed on the kernel's command line.
type Args struct {
	Ports []Port
	Load  Load
	Disk  Disk
	// Run is a program of the image, by its path, and its arguments, which have neither
	// spaces nor commas. It runs beside the guest's own; its end is the guest's.
	Run []string
}

// Port is a network port, found by its MAC.
type Port struct {
	MAC       net.HardwareAddr
	Addresses []netip.Prefix
}

// String gives the port as ParsePort reads it.
func (p Port) String() string {
	text := p.MAC.String()
	for _, prefix := range p.Addresses {
		text += "," + prefix.String()
	}
	return text
}

// Disk is a load on every disk that is there when it begins. The zero value is none.
type Disk struct {
	Rate int `json:"rate"` // records written per second to each, each flushed before the next
}

// String gives the arguments as they stand on the command line, after
// KernelArgs.
func (a Args) String() string {
	var words []string
	for _, p := range a.Ports {
		words = append(words, "godwit.port="+p.String())
	}
	if a.Load != (Load{}) {
		words = append(words, "godwit.load="+a.Load.JSON())
	}
	if a.Disk != (Disk{}) {
		words = append(words, fmt.Sprintf("godwit.disk=%d", a.Disk.Rate))
	}
	if len(a.Run) > 0 {
		words = append(words, "godwit.run="+strings.Join(a.Run, ","))
	}
	return strings.Join(words, " ")
}

// CommandLine gives the whole kernel command line.
func (a Args) CommandLine() string { return strings.TrimSpace(KernelArgs + " " + a.String()) }

// ParseArgs reads the arguments out of a kernel command line. Words that do
// not begin with "godwit." are the kernel's and passed over.
func ParseArgs(line string) (Args, error) {
	var args Args
	for word := range strings.FieldsSeq(line) {
		rest, ours := strings.CutPrefix(word, "godwit.")
		if !ours {
			continue
		}
		key, value, _ := strings.Cut(rest, "=")
		var err error
		switch key {
		case "port":
			var port Port
			port, err = ParsePort(value)
			args.Ports = append(args.Ports, port)
		case "load":
			args.Load, err = ParseLoad(value)
		case "disk":
			args.Disk.Rate, err = parseNumber(value, MaxDiskRate)
		case "run":
			args.Run, err = parseRun(value)
		default:
			err = errors.New("unknown word")
		}
		if err != nil {
			return Args{}, fmt.Errorf("kernel command line: %s: %w", word, err)
		}
	}
	return args, nil
}

// ParsePort reads MAC[,ADDRESS/BITS...].
func ParsePort(value string) (Port, error) {
	fields := strings.Split(value, ",")
	mac, err := net.ParseMAC(fields[0])
	if err != nil {
		return Port{}, err
	}
	port := Port{MAC: mac}
	for _, field := range fields[1:] {
		prefix, err := netip.ParsePrefix(field)
		if err != nil {
			return Port{}, err
		}
		port.Addresses = append(port.Addresses, prefix)
	}
	return port, nil
}

func parseRun(value string) ([]string, error) {
	words := strings.Split(value, ",")
	if !strings.HasPrefix(words[0], "/") {
		return nil, errors.New("want /PATH[,ARGUMENT...]")
	}
	return words, nil
}

func parseNumber(text string, limit int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, err
	}
	if n < 0 || n > limit {
		return 0, fmt.Errorf("%d is not within 0..%d", n, limit)
	}
	return n, nil
}
