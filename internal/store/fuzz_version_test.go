package store

import (
	"strings"
	"testing"
)

// FuzzVersion reads what a cluster says of its version: nothing passes that does
// not begin with the number of a version that will do.
func FuzzVersion(f *testing.F) {
	for _, seed := range []string{"3.4.0", "3.5.21", "3.99.0-rc.1", "4.0.0", "3", "3.", ".5", "", "v3.5.0", "+3.+5.0", "3.99999999999999999999"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, version string) {
		if supported(version) && !strings.Contains(version, ".") {
			t.Errorf("%q is a version that will do", version)
		}
	})
}
