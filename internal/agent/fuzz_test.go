package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pledge"
)

// FuzzCommand reads whatever a server may send. Nothing that passes for a command
// names a folder outside of the agent's.
func FuzzCommand(f *testing.F) {
	for _, command := range badCommands() {
		if text, err := proto.Marshal(command); err == nil && len(text) < 1000 {
			f.Add(text)
		}
	}
	text, err := proto.Marshal(startCommand(1, firmware(1)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	a := &Agent{config: Config{Dir: "/agent"}}
	f.Fuzz(func(t *testing.T, text []byte) {
		command := &godwitv1.Command{}
		if proto.Unmarshal(text, command) != nil || checkCommand(command) != nil {
			return
		}
		instance := command.GetStartInstance().GetInstance()
		if command.GetStartInstance() == nil {
			instance = command.GetPrepareTarget().GetInstance()
		}
		if dir := a.instanceDir(machineKey{fleet.VMName(instance.GetVm()), 1}); !strings.HasPrefix(dir, "/agent/instances/") {
			t.Errorf("%q has its folder at %s", instance.GetVm(), dir)
		}
		new(pledge.Log).Begin(command, "")
	})
}

// FuzzFiles reads what may lie in the agent's folder.
func FuzzFiles(f *testing.F) {
	f.Add([]byte(`[{"uid": "u1", "epoch": 3}]`))
	f.Add([]byte(`{"cluster": 1, "generation": 2, "revision": 3}`))
	f.Add([]byte(`{"vm": "web1", "epoch": 1, "role": "source", "ports": [{"mac": "x", "mtu": -1}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		for _, name := range []string{spentFile, markFile} {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if s, err := loadSpent(dir); err == nil {
			s.of("u1")
		}
		_, _ = loadMark(dir)
		var r record
		if json.Unmarshal(text, &r) == nil {
			for _, port := range r.Ports {
				_, _ = port.tapConfig(network.Gate{Mode: network.Closed})
			}
		}
	})
}
