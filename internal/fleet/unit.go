package fleet

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is an amount of memory, disk or traffic.
type Bytes uint64

// Binary multiples of a byte.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var byteUnits = []struct {
	suffix string
	size   Bytes
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}

// ParseBytes reads amounts such as "256MiB", "2 GiB" or "4096" (bytes). Only
// binary units are known, so that nobody has to guess what "M" stands for.
func ParseBytes(text string) (Bytes, error) {
	for _, unit := range byteUnits {
		number, found := strings.CutSuffix(text, unit.suffix)
		if found {
			return scaleBytes(text, strings.TrimSpace(number), unit.size)
		}
	}
	return scaleBytes(text, text, 1)
}

func scaleBytes(text, number string, unit Bytes) (Bytes, error) {
	// Whole numbers are read exactly: what MarshalText writes must come back.
	if whole, err := strconv.ParseUint(number, 10, 64); err == nil && whole <= math.MaxUint64/uint64(unit) {
		return Bytes(whole) * unit, nil
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || value < 0 || math.IsNaN(value) || value*float64(unit) >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is not an amount of bytes: write a number and KiB, MiB, GiB or TiB, such as 512MiB", text)
	}
	return Bytes(value * float64(unit)), nil
}

// String gives the amount in the largest binary unit that keeps it above one.
func (b Bytes) String() string {
	for _, unit := range byteUnits {
		if b < unit.size || unit.size == 1 {
			continue
		}
		value := strconv.FormatFloat(float64(b)/float64(unit.size), 'f', 1, 64)
		return strings.TrimSuffix(value, ".0") + unit.suffix
	}
	return strconv.FormatUint(uint64(b), 10) + "B"
}

// MarshalText writes the exact number of bytes when no unit fits it exactly.
func (b Bytes) MarshalText() ([]byte, error) {
	for _, unit := range byteUnits {
		if b >= unit.size && b%unit.size == 0 {
			return fmt.Appendf(nil, "%d%s", b/unit.size, unit.suffix), nil
		}
	}
	return []byte("0B"), nil
}

// UnmarshalText is the inverse of MarshalText and reads all that ParseBytes does.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBytes(string(text))
	return err
}

// BytesPerSecond is a rate of transfer or of dirtied memory.
type BytesPerSecond float64

// String gives the rate in binary units.
func (r BytesPerSecond) String() string {
	if r < 0 || math.IsNaN(float64(r)) || math.IsInf(float64(r), 0) {
		return "unknown"
	}
	return Bytes(r).String() + "/s"
}
