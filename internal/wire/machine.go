package wire

import (
	"maps"
	"slices"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// machineMax bounds what a machine takes of a record, in bytes: some times as much as
// one with many cards has.
const machineMax = 64 << 10

// EncodeMachine gives the message of a machine, nil of one that is not known.
func EncodeMachine(m fleet.Machine) *godwitv1.Machine {
	if m == nil {
		return nil
	}
	return &godwitv1.Machine{Fields: m}
}

// MachineOf reads what a host says of a machine; nil if it says nothing. What no
// machine has room for is left out.
func MachineOf(message *godwitv1.Machine) fleet.Machine {
	if message == nil {
		return nil
	}
	m, left := fleet.Machine{}, machineMax
	for _, field := range slices.Sorted(maps.Keys(message.GetFields())) {
		value := message.GetFields()[field]
		if left -= len(field) + len(value); left < 0 {
			break
		}
		m[field] = value
	}
	return m
}
