package wire

import (
	"maps"
	"testing"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

func TestMachine(t *testing.T) {
	if MachineOf(EncodeMachine(nil)) != nil {
		t.Error("a machine that is not known became one")
	}
	m := fleet.Machine{fleet.MachineRAM: "1GiB", fleet.MachineVCPUs: "2"}
	if got := MachineOf(EncodeMachine(m)); !maps.Equal(got, m) {
		t.Errorf("%v became %v", m, got)
	}
}

// FuzzMachine reads what no agent would say of a machine, and compares it.
func FuzzMachine(f *testing.F) {
	for _, seed := range []fleet.Machine{
		{}, {fleet.MachineRAM: "1GiB"}, {"": "", fleet.MachineWords: "1.EDX=1", fleet.MachineFlags: "  a  b "},
	} {
		text, err := proto.Marshal(EncodeMachine(seed))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	own := fleet.Machine{fleet.MachineRAM: "1GiB", fleet.MachineWords: "1.EDX=1", fleet.MachineFlags: "a b"}
	f.Fuzz(func(t *testing.T, text []byte) {
		message := &godwitv1.Machine{}
		if proto.Unmarshal(text, message) != nil {
			return
		}
		m := MachineOf(message)
		size := 0
		for field, value := range m {
			size += len(field) + len(value)
		}
		if size > machineMax {
			t.Errorf("it has %d bytes", size)
		}
		if found := m.Differences(m); found != nil {
			t.Errorf("it differs from itself: %v", found)
		}
		there, back := own.Differences(m), m.Differences(own)
		if len(there) != len(back) {
			t.Errorf("it depends on who compares: %v, %v", there, back)
		}
		for _, one := range there {
			if len(one.String()) == 0 || one.Source == one.Target {
				t.Errorf("%+v is no difference", one)
			}
		}
	})
}
