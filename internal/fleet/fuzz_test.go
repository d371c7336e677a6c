package fleet

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// What is read of an amount is written so that the same comes back.
func FuzzBytes(f *testing.F) {
	for _, seed := range []string{"512MiB", "2 GiB", "4096", "18446744073709551615B", "1.5TiB", "-1", "NaN", "1e400", "0x1p-2KiB", "16777216TiB"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		amount, err := ParseBytes(text)
		if err != nil {
			return
		}
		written, err := amount.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var again Bytes
		if err := again.UnmarshalText(written); err != nil || again != amount {
			t.Errorf("%q is %d, written as %q, read as %d, %v", text, amount, written, again, err)
		}
	})
}

func FuzzNames(f *testing.F) {
	for _, seed := range []string{"web1", "", "-a", "a/b", "..", "../a", strings.Repeat("x", 41), "a\x00", "é", "br0.100", "a:b", "eth%d", "br\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if CheckName(name) == nil && strings.ContainsAny(name, "/.\x00 \n%") {
			t.Errorf("%q is a name", name)
		}
		noFile := name == "" || name == "." || name == ".." || len(name) > 15
		notShown := !utf8.ValidString(name) || strings.ContainsAny(name, "/:% \t\n\x00\x1b")
		if CheckDevice(name) == nil && (noFile || notShown) {
			t.Errorf("%q is a device", name)
		}
		_ = CheckRequestID(name)
	})
}
