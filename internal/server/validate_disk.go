package server

import (
	"fmt"
	"path"

	"godwit.dev/godwit/internal/fleet"
)

// diskPlace is where a disk's bytes are: no two disks have the same.
type diskPlace struct {
	path   string
	server fleet.VolumeServerName
	volume fleet.VolumeName
}

func (f *findings) checkDisks(disks []fleet.Disk, servers map[fleet.VolumeServerName]bool) {
	if len(disks) > fleet.MaxDisks {
		f.add("disks", "are %d, at most %d are possible", len(disks), fleet.MaxDisks)
		return
	}
	names, places := map[string]int{}, map[diskPlace]int{}
	for i, disk := range disks {
		at := fmt.Sprintf("disks[%d].", i)
		f.checkName(at+"name", disk.Name, names, "disks", i)
		place, field := diskPlace{server: disk.Server, volume: disk.Volume}, "volume"
		switch disk.Kind {
		case fleet.DiskVolume:
			f.checkVolumeDisk(at, disk, servers)
		case fleet.DiskLocal:
			f.checkLocalDisk(at, disk)
			continue // each is a file of its own
		default:
			place, field = diskPlace{path: path.Clean(disk.Path)}, "path"
			f.checkFileDisk(at, disk)
		}
		if disk.Size != 0 {
			f.add(at+"size_bytes", "is for disks of kind \"local\"")
		}
		if first, twice := places[place]; twice && (disk.Path != "" || disk.Volume != "") {
			f.add(at+field, "is that of disks[%d] too", first)
		} else {
			places[place] = i
		}
	}
}

func (f *findings) checkFileDisk(at string, disk fleet.Disk) {
	if disk.Kind != fleet.DiskFile {
		f.add(at+"kind", "%q is not a kind of disk: use \"file\", \"volume\" or \"local\"", disk.Kind)
	}
	if disk.Format != "raw" && disk.Format != "qcow2" {
		f.add(at+"format", "%q is not a format: use \"raw\" or \"qcow2\"", disk.Format)
	}
	f.checkPath(at+"path", disk.Path)
	if disk.Server != "" {
		f.add(at+"server", "is for disks of kind \"volume\"")
	}
	if disk.Volume != "" {
		f.add(at+"volume", "is for disks of kind \"volume\"")
	}
}

// maxLocalDisk is beyond any host's disk, and far below what QEMU can't count.
const maxLocalDisk = fleet.Bytes(1) << 50

func (f *findings) checkLocalDisk(at string, disk fleet.Disk) {
	if disk.Format != "raw" && disk.Format != "qcow2" {
		f.add(at+"format", "%q is not a format: use \"raw\" or \"qcow2\"", disk.Format)
	}
	if disk.Size < fleet.MiB || disk.Size > maxLocalDisk || disk.Size%fleet.MiB != 0 {
		f.add(at+"size_bytes", "%s is not a size: use whole MiB, up to %s", disk.Size, maxLocalDisk)
	}
	if disk.Path != "" {
		f.add(at+"path", "is for disks of kind \"file\"")
	}
	if disk.Server != "" {
		f.add(at+"server", "is for disks of kind \"volume\"")
	}
	if disk.Volume != "" {
		f.add(at+"volume", "is for disks of kind \"volume\"")
	}
	if disk.ReadOnly {
		f.add(at+"read_only", "is not for disks of kind \"local\", which begin empty")
	}
}

func (f *findings) checkVolumeDisk(at string, disk fleet.Disk, servers map[fleet.VolumeServerName]bool) {
	if disk.Format != "raw" {
		f.add(at+"format", "%q is not the format of a volume, which is \"raw\"", disk.Format)
	}
	if disk.Path != "" {
		f.add(at+"path", "is for disks of kind \"file\"")
	}
	if err := fleet.CheckName(string(disk.Server)); err != nil {
		f.add(at+"server", "%v", err)
	} else if !servers[disk.Server] {
		f.add(at+"server", "there is no volume server %q: godwit volume server list shows all", disk.Server)
	}
	if err := fleet.CheckName(string(disk.Volume)); err != nil {
		f.add(at+"volume", "%v", err)
	}
}
