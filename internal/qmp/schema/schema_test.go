package schema

import (
	"compress/gzip"
	"io"
	"os"
	"testing"
)

// recorded reads what a real QEMU of that version answered.
func recorded(t *testing.T, version string) *Schema {
	t.Helper()
	file, err := os.Open("../testdata/schema/" + version + ".json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(unzipped)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhatQEMUsKnow(t *testing.T) {
	old, current := recorded(t, "7.2"), recorded(t, "10.0")
	for _, tt := range []struct {
		name       string
		ask        func(*Schema) bool
		in72, in10 bool
	}{
		{"a command of both", func(s *Schema) bool { return s.HasCommand("migrate") }, true, true},
		{"a command of 10.0", func(s *Schema) bool { return s.HasCommand("blockdev-set-active") }, false, true},
		{"an event is no command", func(s *Schema) bool { return s.HasCommand("MIGRATION") }, false, false},
		{"an event", func(s *Schema) bool { return s.HasEvent("MIGRATION_PASS") }, true, true},
		{"a command is no event", func(s *Schema) bool { return s.HasEvent("migrate") }, false, false},
		{"an argument", func(s *Schema) bool { return s.HasArgument("migrate", "uri") }, true, true},
		{"an argument of 10.0", func(s *Schema) bool { return s.HasArgument("migrate", "channels") }, false, true},
		{"an argument within arrays", func(s *Schema) bool { return s.HasArgument("migrate", "channels.channel-type") }, false, true},
		{"an argument within a union", func(s *Schema) bool { return s.HasArgument("migrate", "channels.addr.transport") }, false, true},
		{"a variant's argument", func(s *Schema) bool { return s.HasArgument("object-add", "verify-peer") }, true, true},
		{"a parameter of 10.0", func(s *Schema) bool {
			return s.HasArgument("migrate-set-parameters", "avail-switchover-bandwidth")
		}, false, true},
		{"no such argument", func(s *Schema) bool { return s.HasArgument("migrate", "nonesuch.uri") }, false, false},
		{"a capability", func(s *Schema) bool { return s.HasMigrationCapability("return-path") }, true, true},
		{"a capability of 10.0", func(s *Schema) bool { return s.HasMigrationCapability("switchover-ack") }, false, true},
		{"a capability of 7.2", func(s *Schema) bool { return s.HasMigrationCapability("compress") }, true, false},
		{"a value of a plain member", func(s *Schema) bool {
			return s.HasEnumValue("migrate-continue", "state", "pre-switchover")
		}, true, true},
		{"a member of a result", func(s *Schema) bool { return s.HasResult("query-migrate", "ram.skipped") }, true, false},
		{"no such result", func(s *Schema) bool { return s.HasResult("nonesuch", "ram") }, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.ask(old); got != tt.in72 {
				t.Errorf("QEMU 7.2: %v, want %v", got, tt.in72)
			}
			if got := tt.ask(current); got != tt.in10 {
				t.Errorf("QEMU 10.0: %v, want %v", got, tt.in10)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{`{}`, `[{"name":1}]`, `[{"name":"a"},{"name":"a"}]`, ``} {
		if _, err := Parse([]byte(text)); err == nil {
			t.Errorf("Parse(%q) accepted", text)
		}
	}
}
