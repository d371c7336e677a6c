package cli

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// maxSpecBytes is far more than any spec needs.
const maxSpecBytes = 1 << 20

const specExample = `# A VM for godwit vm create -f FILE. Paths that are not absolute count from the
# folder of this file; every host that may run the VM must see the same files.
name: web1
cpus: 2
memory: 512MiB          # a number and KiB, MiB, GiB or TiB
machine: q35            # the default; fixed to its version at the first start
cpuModel: qemu64        # a named QEMU model that every host can run

# Boot a kernel directly; without this the VM boots from its first disk.
boot:
  kernel: guest/vmlinuz
  initrd: guest/initrd.img
  cmdline: console=ttyS0

disks:
  - name: root
    kind: file          # the default: an image on storage that the hosts share
    path: /srv/vms/web1.qcow2
    format: qcow2       # or raw
    readOnly: false

ports:
  - name: lan
    network: blue       # from godwit network create
    mac: 52:54:00:12:34:56
    ips: [10.20.0.5]
    queues: 1
`

// readSpecFile reads the spec of a VM from a file, or from standard input for
// "-". Relative paths in it become absolute: they count from the file's
// folder, or from the present one for standard input. Only its form is checked
// here; what it means is for the server to judge.
func (a *App) readSpecFile(file string) (*godwitv1.CreateVMRequest, error) {
	source, folder := a.In, "."
	if file != "-" {
		opened, err := os.Open(file)
		if err != nil {
			return nil, unreadableSpec(file, err)
		}
		defer opened.Close()
		source, folder = opened, filepath.Dir(file)
	}
	data, err := io.ReadAll(io.LimitReader(source, maxSpecBytes+1))
	if err != nil {
		return nil, unreadableSpec(file, err)
	}
	if len(data) > maxSpecBytes {
		return nil, &fleet.Error{Code: fleet.Invalid, Op: "read spec", Subject: file, Cause: "it is larger than 1MiB"}
	}
	if folder, err = filepath.Abs(folder); err != nil {
		return nil, unreadableSpec(file, err)
	}
	request, fields := parseSpec(data)
	if len(fields) > 0 {
		return nil, &fleet.Error{
			Code: fleet.Invalid, Op: "read spec", Subject: file, Cause: "it is not valid", Fields: fields,
			Hint: "`godwit vm create --example` prints a valid one",
		}
	}
	resolvePaths(request.GetSpec(), folder)
	return request, nil
}

func unreadableSpec(file string, err error) error {
	if named, ok := errors.AsType[*fs.PathError](err); ok {
		err = named.Err // the file is the subject already
	}
	return &fleet.Error{Code: fleet.Invalid, Op: "read spec", Subject: file, Err: err}
}

func resolvePaths(spec *godwitv1.VMSpec, folder string) {
	resolve := func(path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(folder, *path)
		}
	}
	if boot := spec.GetBoot(); boot != nil {
		resolve(&boot.Kernel)
		resolve(&boot.Initrd)
	}
	for _, disk := range spec.GetDisks() {
		resolve(&disk.Path)
	}
}

// parseSpec reads a spec and gives everything that is wrong with its form.
func parseSpec(data []byte) (*godwitv1.CreateVMRequest, []fleet.FieldError) {
	spec := &godwitv1.VMSpec{Machine: "q35"}
	request := &godwitv1.CreateVMRequest{Spec: spec}
	document := parseDocument(data)
	document.mapping(document.root, "", fields{
		{"name", document.text(&request.Name)},
		{"cpus", document.int32(&spec.Cpus)},
		{"memory", document.bytes(&spec.MemoryBytes)},
		{"machine", document.text(&spec.Machine)},
		{"cpuModel", document.text(&spec.CpuModel)},
		{"boot", document.boot(spec)},
		{"disks", document.disks(spec)},
		{"ports", document.ports(spec)},
	})
	return request, document.faults
}

func (d *document) boot(spec *godwitv1.VMSpec) read {
	return func(at node, path string) {
		boot := &godwitv1.Boot{}
		spec.Boot = boot
		d.mapping(at, path, fields{
			{"kernel", d.text(&boot.Kernel)},
			{"initrd", d.text(&boot.Initrd)},
			{"cmdline", d.text(&boot.Cmdline)},
		})
	}
}

func (d *document) disks(spec *godwitv1.VMSpec) read {
	return d.list(func(at node, path string) {
		disk := &godwitv1.Disk{Kind: string(fleet.DiskFile)}
		spec.Disks = append(spec.Disks, disk)
		d.mapping(at, path, fields{
			{"name", d.text(&disk.Name)},
			{"kind", d.text(&disk.Kind)},
			{"path", d.text(&disk.Path)},
			{"format", d.text(&disk.Format)},
			{"readOnly", d.bool(&disk.ReadOnly)},
		})
	})
}

func (d *document) ports(spec *godwitv1.VMSpec) read {
	return d.list(func(at node, path string) {
		port := &godwitv1.Port{}
		spec.Ports = append(spec.Ports, port)
		d.mapping(at, path, fields{
			{"name", d.text(&port.Name)},
			{"network", d.text(&port.Network)},
			{"mac", d.text(&port.Mac)},
			{"ips", d.list(func(at node, path string) {
				var ip string
				d.text(&ip)(at, path)
				port.Ips = append(port.Ips, ip)
			})},
			{"queues", d.int32(&port.Queues)},
		})
	})
}
