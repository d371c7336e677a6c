package network

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/pid1"
)

// vlanModules are what the tests of VLANs need of a kernel that has nothing built in.
var vlanModules = []string{
	"llc", "stp", "bridge", "veth", "tun", "udp_tunnel", "ip6_udp_tunnel", "vxlan", "sch_ingress", "cls_bpf",
}

// newTrunk makes a fabric whose bridges filter VLANs, and carry these tagged between
// them.
func newTrunk(t *testing.T, hosts int, vlans ...uint16) fabric {
	t.Helper()
	yes := true
	filters := netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "vlans", MTU: jumbo}, VlanFiltering: &yes}
	trial := filters
	if err := handleIn(t, newNamespace(t)).LinkAdd(&trial); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("the kernel has no CONFIG_BRIDGE_VLAN_FILTERING; TestVLANInGuest runs it on one that has")
	}
	f := newFabricOf(t, hosts, filters)
	carry := func(links *netlink.Handle) {
		t.Helper()
		ports, err := links.LinkList()
		must(t, err)
		for _, port := range ports {
			for _, vlan := range vlans {
				if name := port.Attrs().Name; name == "uplink" || strings.HasPrefix(name, "port") {
					must(t, links.BridgeVlanAdd(port, vlan, false, false, false, true))
				}
			}
		}
	}
	carry(f.links)
	for _, h := range f.hosts {
		carry(h.nl)
	}
	return f
}

// A VM in a VLAN moves, and nothing is lost or comes twice; guests of another VLAN of
// the same bridges, and those of none, hear nothing of it.
func TestVLAN(t *testing.T) {
	t.Run("tagged", func(t *testing.T) { moveInVLAN(t, 100, 200, 0) })
	t.Run("the bridge's own", func(t *testing.T) { moveInVLAN(t, 0, 200, 100) })
}

func moveInVLAN(t *testing.T, own uint16, foreign ...uint16) {
	f := newTrunk(t, 3, 100, 200)
	others := map[uint16]guest{}
	for _, vlan := range foreign {
		tap := f.tap(t, 1, TapConfig{
			Name: fmt.Sprintf("gwto%d", vlan), Network: "other", Bridge: providerBridge, VLAN: vlan, MAC: mac(1), Gate: gate(Pass),
		})
		must(t, tap.AwaitForwarding(t.Context()))
		must(t, tap.Claim())
		others[vlan] = guestOf(tap)
	}
	f.vlan = own
	f.beginMove(t, 1000, 60).complete(t)
	for vlan, g := range others {
		if heard := g.waiting(t); len(heard) > 0 {
			t.Errorf("a guest of VLAN %d heard %d frames", vlan, len(heard))
		}
	}
	networks, err := f.hosts[0].HostNetworks()
	if bridge, found := networks.Bridge(providerBridge); err != nil || !found || bridge != (fleet.Bridge{Name: providerBridge, MTU: jumbo, FiltersVLANs: true}) {
		t.Errorf("the host says it has %+v, %v", networks, err)
	}
}

// passed is what asInit says at the end if the tests have passed.
const passed = "the tests in the guest have passed"

// asInit runs the tests of VLANs in a machine that has nothing but this program.
func asInit() {
	err := pid1.Mount()
	if err == nil {
		err = pid1.LoadModules("/modules")
	}
	if err == nil {
		// Another process than the first: that one must not end, nor change its namespace.
		command := exec.Command("/proc/self/exe", "-test.v", "-test.run=^TestVLAN$")
		command.Env = append(os.Environ(), "TMPDIR=/")
		command.Stdout, command.Stderr = os.Stdout, os.Stdout
		err = command.Run()
	}
	if err == nil {
		fmt.Println(passed)
	} else {
		fmt.Println("the tests in the guest have failed:", err)
	}
	pid1.PowerOff()
}

// The same in a guest with Debian's kernel, whatever this host's can do.
func TestVLANInGuest(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("no qemu-system-x86_64")
	}
	cache, err := image.CacheDir()
	if err != nil {
		t.Skipf("%v; 'make setup' fetches the kernel", err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "network.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the test: %v\n%s", err, text)
	}
	guest, err := image.BuildFor(cache, dir, program, vlanModules...)
	if fleet.CodeOf(err) == fleet.NotFound {
		t.Skipf("%v; 'make setup' fetches the kernel", err)
	}
	must(t, err)
	machine := exec.CommandContext(t.Context(), qemu, "-accel", "tcg", "-m", "512M", "-nodefaults", "-no-user-config",
		"-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", guest.Kernel, "-initrd", guest.Initrd,
		"-append", "console=ttyS0 quiet panic=-1")
	text, err := machine.CombinedOutput()
	if err != nil || !bytes.Contains(text, []byte(passed)) || bytes.Contains(text, []byte("--- SKIP")) {
		t.Errorf("%v\n%s", err, text)
	}
}
