package witness

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Limits of what a guest is told to do.
const (
	MaxDirtyRateMiB = 1 << 16
	MaxDirtySetMiB  = 1 << 20
	MaxDiskRate     = 10_000
)

// KernelArgs is what every guest of the lab is booted with: a console on the
// serial port, and nothing that costs time or precision under emulation.
// A panic reboots at once, so QEMU must run with -no-reboot.
const KernelArgs = "console=ttyS0 quiet tsc=reliable no_timer_check mitigations=off panic=-1"

// Args tells a guest what to do. It is passed on the kernel's command line.
type Args struct {
	Ports []Port
	Dirty Dirty
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

// Dirty is a load on the guest's memory. The zero value is none.
type Dirty struct {
	RateMiB int     `json:"rate_mib"` // MiB written per second
	SetMiB  int     `json:"set_mib"`  // MiB that the writes are spread over
	Pattern Pattern `json:"pattern,omitempty"`
}

// Pattern says which page is written next.
type Pattern string

// The patterns.
const (
	Uniform    Pattern = "uniform"    // any page, all alike; the default
	Sequential Pattern = "sequential" // one after the other, round and round
	Hot        Pattern = "hot"        // nine writes of ten to a tenth of the set
)

// Disk is a load on every disk that is there when it begins. The zero value is none.
type Disk struct {
	Rate int `json:"rate"` // records written per second to each, each flushed before the next
}

// Valid says what is wrong with d, or nil.
func (d Dirty) Valid() error {
	switch {
	case d.RateMiB < 0 || d.RateMiB > MaxDirtyRateMiB:
		return fmt.Errorf("dirty rate %d MiB/s is not within 0..%d", d.RateMiB, MaxDirtyRateMiB)
	case d.SetMiB < 0 || d.SetMiB > MaxDirtySetMiB:
		return fmt.Errorf("dirty set %d MiB is not within 0..%d", d.SetMiB, MaxDirtySetMiB)
	case d.RateMiB > 0 && d.SetMiB == 0:
		return errors.New("a dirty rate needs a set")
	}
	switch d.Pattern {
	case "", Uniform, Sequential, Hot:
		return nil
	}
	return fmt.Errorf("unknown dirty pattern %q", d.Pattern)
}

// String gives the arguments as they stand on the command line, after
// KernelArgs.
func (a Args) String() string {
	var words []string
	for _, p := range a.Ports {
		words = append(words, "godwit.port="+p.String())
	}
	if d := a.Dirty; d != (Dirty{}) {
		word := fmt.Sprintf("godwit.dirty=%d,%d", d.RateMiB, d.SetMiB)
		if d.Pattern != "" {
			word += "," + string(d.Pattern)
		}
		words = append(words, word)
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
		case "dirty":
			args.Dirty, err = parseDirty(value)
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

func parseDirty(value string) (Dirty, error) {
	fields := strings.Split(value, ",")
	if len(fields) < 2 || len(fields) > 3 {
		return Dirty{}, errors.New("want RATE_MiBps,SET_MiB[,PATTERN]")
	}
	var d Dirty
	var err error
	if d.RateMiB, err = parseNumber(fields[0], MaxDirtyRateMiB); err != nil {
		return Dirty{}, err
	}
	if d.SetMiB, err = parseNumber(fields[1], MaxDirtySetMiB); err != nil {
		return Dirty{}, err
	}
	if len(fields) == 3 {
		d.Pattern = Pattern(fields[2])
	}
	return d, d.Valid()
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
