package store

import "testing"

func FuzzEndpoints(f *testing.F) {
	for _, seed := range []string{"10.0.0.1:2379", "https://[::1]:1", "a:99999", ":", "http://x"} {
		f.Add(seed)
	}
	f.Fuzz(func(_ *testing.T, text string) { _, _ = parseEndpoint(text) })
}
