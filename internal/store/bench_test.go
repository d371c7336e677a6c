package store_test

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"godwit.dev/godwit/internal/store"
)

// BenchmarkCommit is the store's part of a blackout: one compare-and-swap by
// one caller. It reports the median and the 99th percentile.
func BenchmarkCommit(b *testing.B) {
	for _, engine := range engines {
		b.Run(engine.name, func(b *testing.B) {
			s := engine.open(b)
			value := make([]byte, 2048)
			version, err := s.Commit(b.Context(), store.If(store.Absent("vm")), store.Put("vm", value))
			if err != nil {
				b.Fatal(err)
			}
			var took []time.Duration
			for b.Loop() {
				copy(value, strconv.FormatInt(version, 10))
				began := time.Now()
				version, err = s.Commit(b.Context(), store.If(store.At("vm", version)), store.Put("vm", value))
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
		})
	}
}
