package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/durable/durabletest"
	"godwit.dev/godwit/internal/pledge"
)

// TestPromiseOutlivesPower writes down that a target has given up for good, and
// cuts the power before the peer hears of it: the next agent must know.
func TestPromiseOutlivesPower(t *testing.T) {
	disk := durabletest.NewDisk(t)
	m := &machine{dir: filepath.Join(disk.Dir, "instances", "web.2")}
	if err := durable.MakeFolder(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, part := range []pledge.Role{pledge.Arriving, pledge.Refused} {
		if err := m.setRole(part, "m1"); err != nil {
			t.Fatal(err)
		}
	}
	disk.CutPower()
	var kept record
	text, err := os.ReadFile(filepath.Join(m.dir, recordFile))
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil || kept.Role != pledge.Refused {
		t.Errorf("after the power cut it is %q, %v", kept.Role, err)
	}
}
