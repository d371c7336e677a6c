package image

import (
	"slices"
	"testing"
)

func TestParseLibraries(t *testing.T) {
	text := "\tlinux-vdso.so.1 (0x00007f8a0d852000)\n" +
		"\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f8a0d629000)\n" +
		"\t/lib64/ld-linux-x86-64.so.2 (0x00007f8a0d854000)\n"
	want := []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"}
	if got, err := parseLibraries(text); err != nil || !slices.Equal(got, want) {
		t.Errorf("found %q: %v", got, err)
	}
	if got, err := parseLibraries("\tlibaway.so.1 => not found\n"); err == nil {
		t.Errorf("a missing library is no error: %q", got)
	}
}
