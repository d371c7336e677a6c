package cli

import "testing"

// FuzzSpec reads documents of any form, and says of every fault where it is.
func FuzzSpec(f *testing.F) {
	f.Add([]byte(specExample))
	for _, seed := range []string{"a: &a [*a]", "name: {", "? - a\n: b", "disks:\n  - path: 1\n    - x", "ports: [[[]]]", "cpus: 1e9", "%YAML 9\n---\n", "!!binary x"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		request, document := parseSpec(text)
		resolvePaths(request.GetSpec(), "/srv")
		for _, field := range document.fieldErrors() {
			if field.Problem == "" {
				t.Errorf("a fault without words at %q", field.Path)
			}
		}
	})
}

func FuzzFlags(f *testing.F) {
	for _, seed := range []string{"90s", "1h", "-1ms", "9223372036854775807h", "1e9s", "7", "0x7", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if d, err := parseDuration(text); err == nil {
			_ = shortDuration(d)
		}
		_, _ = parseInt(text)
		_, _ = parseInt64(text)
	})
}
