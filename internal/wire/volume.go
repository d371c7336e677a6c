package wire

import (
	"math"
	"net/netip"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// EncodeVolumeServer gives the message of a volume server.
func EncodeVolumeServer(server fleet.VolumeServer) *godwitv1.VolumeServer {
	return &godwitv1.VolumeServer{
		Name: string(server.Name), Address: server.NBD.Addr().String(), SoftwareVersion: server.Version,
		NbdPort: uint32(server.NBD.Port()), ControlPort: uint32(server.Control.Port()),
	}
}

// DecodeVolumeServer is the inverse of EncodeVolumeServer. Its errors are a
// *fleet.Error with code Invalid and paths such as "nbd_port".
func DecodeVolumeServer(message *godwitv1.VolumeServer) (fleet.VolumeServer, error) {
	var faults faults
	address, err := netip.ParseAddr(message.GetAddress())
	if err != nil || address.IsUnspecified() || address.IsMulticast() {
		faults.add("address", "must be the IP address of one machine")
	}
	port := func(path string, number uint32) netip.AddrPort {
		if number == 0 || number > math.MaxUint16 {
			faults.add(path, "must be between 1 and 65535")
		}
		return netip.AddrPortFrom(address, uint16(number))
	}
	server := fleet.VolumeServer{
		Name: fleet.VolumeServerName(message.GetName()), Version: Bounded(message.GetSoftwareVersion()),
		NBD: port("nbd_port", message.GetNbdPort()), Control: port("control_port", message.GetControlPort()),
	}
	if err := fleet.CheckName(message.GetName()); err != nil {
		faults.add("name", err.Error())
	}
	return server, faults.err("read volume server")
}
