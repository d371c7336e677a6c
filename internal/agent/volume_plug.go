package agent

import (
	"maps"
	"slices"
	"strings"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/wire"
)

// keyedVolumes are volumes of one server whose leases are activated by one key.
type keyedVolumes struct {
	fleet.VolumesOf
	key []byte
}

func leaseName(server fleet.VolumeServerName, volume fleet.VolumeName) string {
	return string(server) + "/" + string(volume)
}

// leases gives the volumes by what activates them.
func (v *volumesRecord) leases() (all []keyedVolumes) {
	for _, of := range v.Volumes {
		first := keyedVolumes{fleet.VolumesOf{Server: of.Server}, v.Key}
		for _, volume := range of.Volumes {
			if key, own := v.Keys[leaseName(of.Server, volume)]; own {
				all = append(all, keyedVolumes{fleet.VolumesOf{Server: of.Server, Volumes: []fleet.VolumeName{volume}}, key})
			} else {
				first.Volumes = append(first.Volumes, volume)
			}
		}
		if len(first.Volumes) > 0 {
			all = append(all, first)
		}
	}
	return all
}

// addVolume notes one more volume, and what activates its lease. It may be called
// again.
func (m *machine) addVolume(disk fleet.Disk, at *godwitv1.VolumeServer, key []byte) error {
	server, err := wire.DecodeVolumeServer(at)
	if err != nil {
		return err
	}
	if err := m.dropVolume(disk); err != nil {
		return err
	}
	volumes := volumesRecord{Until: m.agent.config.Keeper.NotAfter()}
	if m.record.Volumes != nil {
		volumes = *m.record.Volumes
	}
	volumes.Servers = slices.DeleteFunc(slices.Clone(volumes.Servers), func(s fleet.VolumeServer) bool { return s.Name == server.Name })
	volumes.Servers = append(volumes.Servers, server)
	volumes.Volumes = fleet.VMSpec{Disks: append(disksOf(volumes.Volumes), disk)}.Volumes()
	volumes.Keys = maps.Clone(volumes.Keys)
	if volumes.Keys == nil {
		volumes.Keys = map[string][]byte{}
	}
	volumes.Keys[leaseName(disk.Server, disk.Volume)] = key
	next := m.record
	next.Volumes = &volumes
	return m.note(next)
}

// dropVolume forgets a volume.
func (m *machine) dropVolume(disk fleet.Disk) error {
	if m.record.Volumes == nil {
		return nil
	}
	volumes := *m.record.Volumes
	disks := slices.DeleteFunc(disksOf(volumes.Volumes), func(d fleet.Disk) bool { return d.Server == disk.Server && d.Volume == disk.Volume })
	volumes.Volumes = fleet.VMSpec{Disks: disks}.Volumes()
	volumes.Keys = maps.Clone(volumes.Keys)
	delete(volumes.Keys, leaseName(disk.Server, disk.Volume))
	next := m.record
	next.Volumes = &volumes
	if len(disks) == 0 {
		next.Volumes = nil
	}
	return m.note(next)
}

// diskOf gives what the VM's record calls a disk of QEMU, as far as it says what that
// is.
func diskOf(disk qemu.Disk) *fleet.Disk {
	if disk.Volume == nil {
		return &fleet.Disk{Name: disk.Name, Kind: fleet.DiskFile}
	}
	volume, _, _ := strings.Cut(disk.Volume.Export, "@")
	server := strings.TrimSuffix(disk.Volume.TLSHostname, pki.VolumeServerName(""))
	return &fleet.Disk{
		Name: disk.Name, Kind: fleet.DiskVolume, Server: fleet.VolumeServerName(server), Volume: fleet.VolumeName(volume),
	}
}
