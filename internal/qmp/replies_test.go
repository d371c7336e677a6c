package qmp_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"godwit.dev/godwit/internal/qmp"
)

// decoders has what each recorded reply is decoded into.
var decoders = map[string]func() any{
	"query-version":              func() any { return new(qmp.QueryVersionResult) },
	"query-status":               func() any { return new(qmp.QueryStatusResult) },
	"query-machines":             func() any { return new([]qmp.MachineInfo) },
	"query-cpu-definitions":      func() any { return new([]qmp.CPUDefinition) },
	"query-cpu-model-expansion":  func() any { return new(qmp.QueryCPUModelExpansionResult) },
	"query-kvm":                  func() any { return new(qmp.QueryKVMResult) },
	"query-migrate":              func() any { return new(qmp.QueryMigrateResult) },
	"query-migrate-capabilities": func() any { return new([]qmp.MigrationCapabilityStatus) },
	"query-migrate-parameters":   func() any { return new(qmp.QueryMigrateParametersResult) },
	"query-dirty-rate":           func() any { return new(qmp.QueryDirtyRateResult) },
	"query-yank":                 func() any { return new([]qmp.YankInstance) },
	"query-block":                func() any { return new([]qmp.BlockInfo) },
	"query-named-block-nodes":    func() any { return new([]qmp.BlockNode) },
	"query-pci":                  func() any { return new([]qmp.PCIBus) },
	"query-rx-filter":            func() any { return new([]qmp.RxFilter) },
	"qom-list":                   func() any { return new([]qmp.QOMProperty) },
	"event@MIGRATION":            func() any { return new(qmp.MigrationEvent) },
	"event@MIGRATION_PASS":       func() any { return new(qmp.MigrationPassEvent) },
	"event@RESET":                func() any { return new(qmp.ResetEvent) },
	"event@SHUTDOWN":             func() any { return new(qmp.ShutdownEvent) },
}

// notKept has the members that QEMU 7.2 writes and the 10.0 schema, from which
// the types are made, does not have. Nothing in Godwit needs them.
var notKept = map[string][]string{
	"7.2": {
		"query-migrate-parameters.block-incremental",
		"query-migrate-parameters.compress-level",
		"query-migrate-parameters.compress-threads",
		"query-migrate-parameters.compress-wait-thread",
		"query-migrate-parameters.decompress-threads",
		"query-migrate.ram.skipped",
		"query-status.singlestep",
	},
}

// TestRecordedReplies decodes what real QEMUs wrote and encodes it again:
// whatever is missing then, or different, was lost by the generated types.
func TestRecordedReplies(t *testing.T) {
	for _, version := range []string{"7.2", "10.0"} {
		files, err := filepath.Glob(filepath.Join("testdata", "replies", version, "*.json"))
		if err != nil || len(files) < len(decoders) {
			t.Fatalf("QEMU %s: %d replies, %v", version, len(files), err)
		}
		met := make(map[string]bool)
		for _, file := range files {
			t.Run(version+"/"+strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
				for _, lost := range roundTrip(t, file) {
					met[lost] = true
					if !slices.Contains(notKept[version], lost) {
						t.Errorf("lost: %s", lost)
					}
				}
			})
		}
		for _, path := range notKept[version] {
			if !met[path] {
				t.Errorf("QEMU %s: %s is listed as not kept, but never lost", version, path)
			}
		}
	}
}

// roundTrip gives the paths of what one reply lost.
func roundTrip(t *testing.T, file string) (lost []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	name := strings.TrimSuffix(filepath.Base(file), ".json")
	if !strings.HasPrefix(name, "event@") {
		name, _, _ = strings.Cut(name, "@")
	}
	decoder := decoders[name]
	if decoder == nil {
		t.Fatal("no decoder is listed for it")
	}
	typed := decoder()
	must(t, json.Unmarshal(text, typed))
	again, err := json.Marshal(typed)
	must(t, err)
	var want, got any
	must(t, json.Unmarshal(text, &want))
	must(t, json.Unmarshal(again, &got))
	return compare(name, want, got)
}

// compare gives the paths in want that got lacks or has otherwise.
func compare(path string, want, got any) (lost []string) {
	switch want := want.(type) {
	case map[string]any:
		got, _ := got.(map[string]any)
		for name, value := range want {
			lost = append(lost, compare(path+"."+name, value, got[name])...)
		}
	case []any:
		got, _ := got.([]any)
		for i, value := range want {
			if i >= len(got) {
				return append(lost, fmt.Sprintf("%s: %d of %d elements", path, len(got), len(want)))
			}
			lost = append(lost, compare(path, value, got[i])...)
		}
	default:
		if !reflect.DeepEqual(want, got) {
			lost = append(lost, path)
		}
	}
	slices.Sort(lost)
	return slices.Compact(lost)
}
