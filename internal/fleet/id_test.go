package fleet

import (
	"strings"
	"testing"
)

func TestDeviceNames(t *testing.T) {
	const length, characters = "1 to 15 bytes", "printable, without spaces and /:%"
	cases := []struct {
		name, device string
		want         string // what the error says of device names; "" if it is one
	}{
		{"a bridge", "br0", ""},
		{"a VLAN's", "eth0.100", ""},
		{"another script", "brücke", ""},
		{"dots at its ends", "..a.", ""},
		{"as long as can be", "br-0123456789ab", ""},
		{"too long", "br-0123456789abc", length},
		{"too long in bytes", "brücken-zu-zwei", length},
		{"none", "", length},
		{"the folder", ".", characters},
		{"the folder above", "..", characters},
		{"a path", "br/0", characters},
		{"an alias", "br0:1", characters},
		{"a pattern", "br%d", characters},
		{"a space", "br 0", characters},
		{"a wide space", "br\u30000", characters},
		{"a tab", "br\t0", characters},
		{"a control byte", "br\x1b[2J", characters},
		{"a zero byte", "br\x00", characters},
		{"no UTF-8", "br\xff", characters},
	}
	for _, test := range cases {
		err := CheckDevice(test.device)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %q: %v, want %q", test.name, test.device, err, test.want)
		}
	}
}
