package wire

import (
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// encodeChange gives the message of a change; none of none.
func encodeChange(change *fleet.Change) *godwitv1.HardwareChange {
	if change == nil {
		return nil
	}
	message := &godwitv1.HardwareChange{
		Sequence: change.Sequence, Remove: change.Remove, State: string(change.State), Cause: change.Cause,
	}
	if change.Disk != nil {
		message.Disk = EncodeDisk(*change.Disk)
	}
	if change.Port != nil {
		message.Port = EncodePort(*change.Port)
	}
	return message
}

func decodeChange(message *godwitv1.HardwareChange, faults *faults) *fleet.Change {
	if message == nil {
		return nil
	}
	change := &fleet.Change{
		Sequence: message.GetSequence(), Remove: message.GetRemove(),
		State: fleet.ChangeState(message.GetState()), Cause: message.GetCause(),
	}
	if message.GetDisk() != nil {
		disk := DecodeDisk(message.GetDisk())
		change.Disk = &disk
	}
	if message.GetPort() != nil {
		port := decodePort(message.GetPort(), "change.port", faults)
		change.Port = &port
	}
	return change
}
