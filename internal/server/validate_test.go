package server

import (
	"crypto/x509"
	"net/netip"
	"slices"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

func parseCertificate(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func testSurroundings() surroundings {
	return surroundings{
		hosts: []fleet.Host{{Name: "h1", QEMU: fleet.QEMUFeatures{
			Machines: []string{"pc-q35-10.0"}, Aliases: map[string]string{"q35": "pc-q35-10.0"}, CPUModels: []string{"qemu64"},
		}}},
		networks: map[fleet.NetworkName]fleet.Network{
			"blue": {Name: "blue", Subnets: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/24"), netip.MustParsePrefix("fd00::/64")}},
			"free": {Name: "free"},
		},
		volumeServers: map[fleet.VolumeServerName]bool{"v1": true},
	}
}

func TestSpecs(t *testing.T) {
	disk := func(edit ...func(*godwitv1.Disk)) *godwitv1.Disk {
		d := &godwitv1.Disk{Name: "root", Kind: "file", Path: "/srv/root.img", Format: "raw"}
		for _, e := range edit {
			e(d)
		}
		return d
	}
	port := func(edit func(*godwitv1.Port)) *godwitv1.Port {
		p := &godwitv1.Port{Name: "net0", Network: "blue"}
		edit(p)
		return p
	}
	type spec = godwitv1.VMSpec
	cases := []struct {
		name string
		edit func(*spec)
		want []string // paths
	}{
		{"as it should be", func(*spec) {}, nil},
		{"no CPUs", func(s *spec) { s.Cpus = 0 }, []string{"cpus"}},
		{"too many CPUs", func(s *spec) { s.Cpus = 513 }, []string{"cpus"}},
		{"most CPUs", func(s *spec) { s.Cpus = 512 }, nil},
		{"too little memory", func(s *spec) { s.MemoryBytes = uint64(fleet.MiB * 15) }, []string{"memory_bytes"}},
		{"least memory", func(s *spec) { s.MemoryBytes = uint64(fleet.MiB * 16) }, nil},
		{"odd memory", func(s *spec) { s.MemoryBytes++ }, []string{"memory_bytes"}},
		{"unknown machine", func(s *spec) { s.Machine = "virt" }, []string{"machine"}},
		{"versioned machine", func(s *spec) { s.Machine = "pc-q35-10.0" }, nil},
		{"unknown CPU", func(s *spec) { s.CpuModel = "host" }, []string{"cpu_model"}},
		{"nothing to boot", func(s *spec) { s.Boot = nil }, []string{"boot"}},
		{"boot from disk", func(s *spec) { s.Boot, s.Disks = nil, []*godwitv1.Disk{disk()} }, nil},
		{"relative kernel", func(s *spec) { s.Boot.Kernel = "vmlinuz" }, []string{"boot.kernel"}},
		{"no kernel, relative initrd", func(s *spec) { s.Boot = &godwitv1.Boot{Initrd: "initrd"} }, []string{"boot.kernel", "boot.initrd"}},
		{"two lines of command line", func(s *spec) { s.Boot.Cmdline = "a\nb" }, []string{"boot.cmdline"}},
		{"kind left out", func(s *spec) { s.Disks = []*godwitv1.Disk{disk(func(d *godwitv1.Disk) { d.Kind = "" })} }, nil},
		{"bad disk", func(s *spec) { s.Disks = []*godwitv1.Disk{{Name: "Root!", Kind: "tape", Path: "x", Format: "vmdk"}} },
			[]string{"disks[0].name", "disks[0].kind", "disks[0].format", "disks[0].path"}},
		{"same disk twice", func(s *spec) {
			s.Disks = []*godwitv1.Disk{disk(), disk(func(d *godwitv1.Disk) { d.Path = "/srv//root.img" })}
		}, []string{"disks[1].name", "disks[1].path"}},
		{"volume", func(s *spec) {
			s.Boot, s.Disks = nil, []*godwitv1.Disk{{Name: "root", Kind: "volume", Server: "v1", Volume: "web1"}}
		}, nil},
		{"bad volume", func(s *spec) {
			s.Disks = []*godwitv1.Disk{{Name: "root", Kind: "volume", Server: "v2", Volume: "Web1", Path: "/x", Format: "qcow2"}}
		}, []string{"disks[0].format", "disks[0].path", "disks[0].server", "disks[0].volume"}},
		{"same volume twice", func(s *spec) {
			one := &godwitv1.Disk{Name: "root", Kind: "volume", Server: "v1", Volume: "web1"}
			s.Disks = []*godwitv1.Disk{one, {Name: "data", Kind: "volume", Server: "v1", Volume: "web1"}}
		}, []string{"disks[1].volume"}},
		{"a file with a volume", func(s *spec) {
			s.Disks = []*godwitv1.Disk{disk(func(d *godwitv1.Disk) { d.Server, d.Volume = "v1", "web1" })}
		}, []string{"disks[0].server", "disks[0].volume"}},
		{"local", func(s *spec) {
			s.Disks = []*godwitv1.Disk{{Name: "a", Kind: "local", Format: "raw", SizeBytes: 1 << 30}, {Name: "b", Kind: "local", Format: "qcow2", SizeBytes: 1 << 30}}
		}, nil},
		{"bad local", func(s *spec) {
			s.Disks = []*godwitv1.Disk{{Name: "a", Kind: "local", Format: "vmdk", SizeBytes: 1000, Path: "/x", Server: "v1", Volume: "x", ReadOnly: true}}
		}, []string{"disks[0].format", "disks[0].size_bytes", "disks[0].path", "disks[0].server", "disks[0].volume", "disks[0].read_only"}},
		{"a file of a size", func(s *spec) {
			s.Disks = []*godwitv1.Disk{disk(func(d *godwitv1.Disk) { d.SizeBytes = 1 << 30 })}
		}, []string{"disks[0].size_bytes"}},
		{"unknown network", func(s *spec) { s.Ports = []*godwitv1.Port{port(func(p *godwitv1.Port) { p.Network = "red" })} }, []string{"ports[0].network"}},
		{"group MAC", func(s *spec) {
			s.Ports = []*godwitv1.Port{port(func(p *godwitv1.Port) { p.Mac = "01:00:5e:00:00:01" })}
		}, []string{"ports[0].mac"}},
		{"upper-case MAC", func(s *spec) {
			s.Ports = []*godwitv1.Port{port(func(p *godwitv1.Port) { p.Mac = "02:00:5E:00:00:0A" })}
		}, nil},
		{"no MAC", func(s *spec) { s.Ports = []*godwitv1.Port{port(func(p *godwitv1.Port) { p.Mac = "zz" })} }, []string{"ports[0].mac"}},
		{"zero MAC", func(s *spec) {
			s.Ports = []*godwitv1.Port{port(func(p *godwitv1.Port) { p.Mac = "00:00:00:00:00:00" })}
		}, []string{"ports[0].mac"}},
		{"queues", func(s *spec) { s.Ports = []*godwitv1.Port{port(func(p *godwitv1.Port) { p.Queues = 9 })} }, []string{"ports[0].queues"}},
		{"too many addresses", func(s *spec) {
			s.Ports = []*godwitv1.Port{port(func(p *godwitv1.Port) {
				p.Ips = []string{"10.20.0.9", "10.21.0.9", "10.20.0.255", "10.20.0.0", "x", "10.20.0.9", "fd00::5", "fd00::", "224.0.0.1"}
			})}
		}, []string{"ports[0].ips[4]", "ports[0].ips", "ports[0].ips[5]"}},
		{"addresses outside", func(s *spec) {
			s.Ports = []*godwitv1.Port{port(func(p *godwitv1.Port) {
				p.Ips = []string{"10.20.0.9", "10.21.0.9", "10.20.0.255", "10.20.0.0", "x", "fd00::", "224.0.0.1"}
			})}
		}, []string{"ports[0].ips[4]", "ports[0].ips[1]", "ports[0].ips[2]", "ports[0].ips[3]", "ports[0].ips[5]", "ports[0].ips[6]"}},
		{"any address without subnets", func(s *spec) {
			s.Ports = []*godwitv1.Port{port(func(p *godwitv1.Port) { p.Network, p.Ips = "free", []string{"192.0.2.1"} })}
		}, nil},
		{"two ports alike", func(s *spec) {
			one := port(func(p *godwitv1.Port) { p.Mac, p.Ips = "02:00:00:00:00:01", []string{"10.20.0.9"} })
			s.Ports = []*godwitv1.Port{one, one}
		}, []string{"ports[1].name", "ports[1].mac", "ports[1].ips[0]"}},
		{"everything at once", func(s *spec) {
			*s = spec{Machine: "x", Boot: &godwitv1.Boot{}, Disks: []*godwitv1.Disk{{}}, Ports: []*godwitv1.Port{{Queues: -1}}}
		}, []string{"cpus", "memory_bytes", "machine", "boot.kernel", "disks[0].name", "disks[0].format", "disks[0].path",
			"ports[0].name", "ports[0].queues", "ports[0].network"}},
	}
	for _, test := range cases {
		request := &godwitv1.CreateVMRequest{Name: "web1", Spec: &spec{
			Cpus: 2, MemoryBytes: uint64(256 * fleet.MiB), Boot: &godwitv1.Boot{Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd"},
		}}
		test.edit(request.Spec)
		_, found := newVM(request, testSurroundings())
		if !slices.Equal(pathsOf(found), test.want) {
			t.Errorf("%s: %v\nwant %q", test.name, found, test.want)
		}
	}
}

func TestRequestsWithoutSpecOrName(t *testing.T) {
	_, found := newVM(&godwitv1.CreateVMRequest{Name: "Web 1", Stopped: true, Host: "h1"}, testSurroundings())
	if !slices.Equal(pathsOf(found), []string{"name", "host", "spec"}) {
		t.Errorf("%v", found)
	}
}

func pathsOf(fields []fleet.FieldError) (paths []string) {
	for _, field := range fields {
		paths = append(paths, field.Path)
	}
	return paths
}

// What is wrong with the spec itself and the addresses that others have come
// together.
func TestTakenAddressesAreToldWithTheRest(t *testing.T) {
	f := newFleet(t)
	f.join("h1")
	f.network("blue", "10.20.0.0/24")
	first := f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec("blue")})
	spec := smallSpec("blue")
	spec.Cpus, spec.Ports[0].Ips = 0, first.GetSpec().GetPorts()[0].GetIps()
	_, err := f.vms.Create(t.Context(), &godwitv1.CreateVMRequest{Name: "web2", Spec: spec})
	if fields := fieldsOf(err); !slices.Equal(pathsOf(fields), []string{"cpus", "ports[0].ips[0]"}) {
		t.Errorf("%v", describe(err))
	}
}

func TestValidateOnlyRecordsNothing(t *testing.T) {
	f := newFleet(t)
	f.join("h1")
	f.network("blue", "10.20.0.0/24")
	request := &godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec("blue"), ValidateOnly: true}
	vm := f.create(request)
	if vm.GetOwner().GetHost() != "h1" || len(vm.GetSpec().GetPorts()[0].GetIps()) != 1 || vm.GetVersion() != 0 {
		t.Errorf("would be %v", vm)
	}
	if _, err := f.vms.Get(t.Context(), &godwitv1.GetVMRequest{Name: "web1"}); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("it was recorded: %v", err)
	}
	if cpus, memory := f.reserved("h1"); cpus != 0 || memory != 0 {
		t.Errorf("reserved %d CPUs and %d bytes", cpus, memory)
	}
	request.Host = "h2"
	if _, err := f.vms.Create(t.Context(), request); fleet.CodeOf(err) != fleet.NoFit && fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("on a host that does not exist: %v", err)
	}
}

func TestAssignedAddresses(t *testing.T) {
	networks := testSurroundings().networks
	taken := map[string]addressHolder{"10.20.0.2": {Endpoint: "gw"}}
	holder := addressHolder{VM: "web1", Port: "net0"}
	one := fleet.Port{Name: "net0", Network: "blue"}
	if found := assign(&one, "ports[0]", networks["blue"], taken, holder); len(found) > 0 {
		t.Fatal(found)
	}
	want := []netip.Addr{netip.MustParseAddr("10.20.0.3"), netip.MustParseAddr("fd00::2")}
	if !slices.Equal(one.IPs, want) {
		t.Errorf("addresses %v, want %v", one.IPs, want)
	}
	var found findings
	if found.checkMAC("mac", one.MAC); len(found) > 0 || one.MAC[1] != '2' && one.MAC[1] != '6' && one.MAC[1] != 'a' && one.MAC[1] != 'e' {
		t.Errorf("MAC %s: %v", one.MAC, found)
	}
	two := fleet.Port{Name: "net1", Network: "blue", MAC: one.MAC, IPs: []netip.Addr{netip.MustParseAddr("10.20.0.2")}}
	found = assign(&two, "ports[1]", networks["blue"], taken, holder)
	if len(found) != 2 || found[0].Path != "ports[1].mac" || found[1].Problem != "10.20.0.2 is taken by endpoint gw" {
		t.Errorf("found %v", found)
	}
	tiny := fleet.Network{Name: "tiny", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/30")}}
	taken = map[string]addressHolder{}
	for i, wantFound := range []int{0, 1} {
		p := fleet.Port{Name: "net0", Network: "tiny"}
		if found := assign(&p, "ports[0]", tiny, taken, holder); len(found) != wantFound {
			t.Errorf("port %d of a subnet with one free address: %v", i, found)
		}
	}
}
