package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"godwit.dev/godwit/api/client"
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
cpuModel: qemu64        # a named QEMU model that every host can run; host or max
                        # is your word that all hosts have the same CPU: Godwit
                        # compares only the names

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
# - name: data          # a volume of a volume server: godwit volume server list
#   kind: volume
#   server: v1
#   volume: web1
# - name: scratch       # an image that the VM's host keeps, and that moves with
#   kind: local         # the VM; it begins empty
#   format: qcow2       # or raw
#   size: 20GiB

ports:
  - name: lan
    network: blue       # from godwit network create
    mac: 52:54:00:12:34:56
    ips: [10.20.0.5]
    queues: 1
`

// specFile is a spec as it was read, as far as it could be.
type specFile struct {
	name     string
	document *document
	request  *godwitv1.CreateVMRequest
	notes    []fleet.FieldError // that are about no field of it
}

// readSpecFile reads the spec of a VM from a file, or from standard input for
// "-". Relative paths in it become absolute: they count from the file's
// folder, or from the present one for standard input. What is wrong with its
// form is left in the document; what it means is for the server to judge.
func (a *App) readSpecFile(file string) (*specFile, error) {
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
		return nil, &fleet.Error{Code: fleet.Invalid, Op: "read spec", Subject: file, Cause: "it is larger than 1MiB", Hint: "is it a spec?"}
	}
	if folder, err = filepath.Abs(folder); err != nil {
		return nil, unreadableSpec(file, err)
	}
	request, document := parseSpec(data)
	resolvePaths(request.GetSpec(), folder)
	return &specFile{name: file, document: document, request: request}, nil
}

// create asks the server for the VM. If the form of the spec is wrong the
// server is asked only what it has to say about the rest, so that everything
// that is wrong is told together.
func (s *specFile) create(ctx context.Context, c *client.Client) (*godwitv1.VM, error) {
	malformed := len(s.document.faults) > 0
	s.request.ValidateOnly = s.request.ValidateOnly || malformed
	response, err := c.VM.Create(ctx, s.request)
	e, ok := errors.AsType[*fleet.Error](err)
	switch {
	case ok && e.Code == fleet.Invalid && len(e.Fields) > 0:
		for _, field := range e.Fields {
			s.document.blame(yamlPath(field.Path), field.Problem)
		}
	case !malformed || errors.Is(err, context.Canceled):
		return response.GetVm(), err
	case ok && (e.Code == fleet.Unavailable || e.Code == fleet.Denied || e.Code == fleet.Deadline):
		s.notes = append(s.notes, fleet.FieldError{Path: "the rest", Problem: "was not checked: " + plainWords(err)})
	case ok && e.Code == fleet.Exists:
		s.document.blame("name", e.Cause)
	case err != nil: // no host fits, or there is none of that name
		s.notes = append([]fleet.FieldError{{Path: "besides", Problem: plainWords(err)}}, fieldsOf(err)...)
	}
	return nil, s.invalid()
}

// invalid tells everything that is known to be wrong.
func (s *specFile) invalid() error {
	return &fleet.Error{
		Code: fleet.Invalid, Op: "read spec", Subject: s.name, Cause: "it is not valid", Fields: append(s.document.fieldErrors(), s.notes...),
		Hint: "`godwit vm create --example` prints a valid one",
	}
}

// yamlPath gives the path in a spec file of a field of the API.
func yamlPath(path string) string {
	return strings.NewReplacer("memory_bytes", "memory", "cpu_model", "cpuModel", "read_only", "readOnly", "size_bytes", "size").Replace(path)
}

func unreadableSpec(file string, err error) error {
	if named, ok := errors.AsType[*fs.PathError](err); ok {
		err = named.Err // the file is the subject already
	}
	return &fleet.Error{
		Code: fleet.Invalid, Op: "read spec", Subject: file, Err: err,
		Hint: "`godwit vm create --example > web1.yaml` writes one to begin with",
	}
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

// parseSpec reads a spec; the document has everything that is wrong with its
// form.
func parseSpec(data []byte) (*godwitv1.CreateVMRequest, *document) {
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
	return request, document
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
			{"server", d.text(&disk.Server)},
			{"volume", d.text(&disk.Volume)},
			{"size", d.bytes(&disk.SizeBytes)},
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
