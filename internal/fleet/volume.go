package fleet

import (
	"cmp"
	"net/netip"
	"slices"
)

// VolumeServerName names a volume server: a DNS label, unique in the fleet. It
// is also the name in the volume server's certificate.
type VolumeServerName string

// VolumeServer is the record of one volume server, as it says of itself.
type VolumeServer struct {
	Name    VolumeServerName `json:"name"`
	NBD     netip.AddrPort   `json:"nbd"`     // where it serves disks
	Control netip.AddrPort   `json:"control"` // where it is asked for leases
	Version string           `json:"version"` // of its program
}

// VolumesOf are volumes of one volume server.
type VolumesOf struct {
	Server  VolumeServerName `json:"server"`
	Volumes []VolumeName     `json:"volumes"` // in their order
}

// Volumes gives the volumes that the disks are, by server, in their order.
func (s VMSpec) Volumes() (all []VolumesOf) {
	for _, disk := range s.Disks {
		if disk.Kind != DiskVolume {
			continue
		}
		at, found := slices.BinarySearchFunc(all, disk.Server, func(of VolumesOf, server VolumeServerName) int {
			return cmp.Compare(of.Server, server)
		})
		if !found {
			all = slices.Insert(all, at, VolumesOf{Server: disk.Server})
		}
		all[at].Volumes = append(all[at].Volumes, disk.Volume)
		slices.Sort(all[at].Volumes)
	}
	return all
}
