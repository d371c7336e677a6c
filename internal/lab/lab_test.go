package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"godwit.dev/godwit/internal/fleet"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
}

func newLab(t *testing.T, hosts ...string) *Lab {
	t.Helper()
	needRoot(t)
	l, err := New(t.Context(), Config{Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		checkGone(t, l.info)
	})
	return l
}

// checkGone looks for anything that the lab may have left.
func checkGone(t *testing.T, info Info) {
	t.Helper()
	for _, namespace := range info.Namespaces {
		if _, err := os.Lstat(filepath.Join(netnsDir, namespace)); err == nil {
			t.Errorf("namespace %s is left", namespace)
		}
	}
	for _, dir := range []string{info.Dir, folder(info.Name)} {
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("folder %s is left", dir)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "/gw-"+info.Name+"-") {
		t.Errorf("a mount of lab %s is left", info.Name)
	}
}

func deviceNames(t *testing.T) []string {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, link := range links {
		if strings.HasPrefix(link.Attrs().Name, "port") || link.Type() == "veth" {
			names = append(names, link.Attrs().Name)
		}
	}
	return names
}

func TestTwoLabsWithTheSameAddresses(t *testing.T) {
	needRoot(t)
	before := deviceNames(t)
	labs := []*Lab{newLab(t, "a", "b"), newLab(t, "a", "b")}
	if during := deviceNames(t); !slices.Equal(before, during) {
		t.Errorf("the root namespace got devices: had %v, has %v", before, during)
	}
	for i, l := range labs {
		sink, err := listenPacket(t, l.Host("b").Namespace, "10.77.0.11:9")
		if err != nil {
			t.Fatal(err)
		}
		// A datagram that fills the MTU, marked with the lab it belongs to.
		sent := make([]byte, DefaultMTU-28)
		sent[0] = byte(i)
		source, err := l.Host("a").DialContext(t.Context(), "udp", "10.77.0.11:9")
		if err != nil {
			t.Fatal(err)
		}
		defer source.Close()
		if _, err := source.Write(sent); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, DefaultMTU)
		n, from, err := sink.ReadFrom(got)
		if err != nil || n != len(sent) || got[0] != byte(i) {
			t.Errorf("lab %d: %d bytes marked %d from %v: %v", i, n, got[0], from, err)
		}
	}
}

func listenPacket(t *testing.T, n *Namespace, address string) (conn net.PacketConn, err error) {
	t.Helper()
	err = n.Do(func() error {
		conn, err = net.ListenPacket("udp", address)
		return err
	})
	if err == nil {
		t.Cleanup(func() { conn.Close() })
		err = conn.SetDeadline(time.Now().Add(5 * time.Second))
	}
	return conn, err
}

func TestClient(t *testing.T) {
	l := newLab(t, "a")
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	client, err := l.AddClient("web", Port{
		Host: "a", Device: "web0", MAC: mac, MTU: 1400,
		Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24"), netip.MustParsePrefix("2001:db8::9/64")},
	})
	if err != nil {
		t.Fatal(err)
	}
	check := func(n *Namespace, device string) netlink.Link {
		var link netlink.Link
		err := n.Do(func() (err error) {
			link, err = netlink.LinkByName(device)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if a := link.Attrs(); a.MTU != 1400 || a.Flags&net.FlagUp == 0 {
			t.Errorf("%s: MTU %d, flags %s", device, a.MTU, a.Flags)
		}
		return link
	}
	check(l.Host("a").Namespace, "web0")
	if got := check(client, "eth0").Attrs().HardwareAddr; got.String() != mac.String() {
		t.Errorf("MAC %s", got)
	}
	for _, address := range []string{"192.0.2.9:80", "[2001:db8::9]:80"} {
		listener, err := client.Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Errorf("address is not usable at once: %v", err)
			continue
		}
		listener.Close()
	}
	if _, err := l.AddClient("web"); err == nil {
		t.Error("a second client of the same name")
	}
	if _, err := l.AddClient("x", Port{Host: "nobody"}); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("client of no host: %v", err)
	}
}

func TestCommandRunsInside(t *testing.T) {
	l := newLab(t, "a")
	out, err := l.Host("a").Command(t.Context(), "readlink", "/proc/self/ns/net").Output()
	if err != nil {
		t.Fatal(err)
	}
	id, err := identify(filepath.Join(netnsDir, l.Host("a").Name()))
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("net:[%d]", id.inode); strings.TrimSpace(string(out)) != want {
		t.Errorf("the program ran in %s, want %s", out, want)
	}
	out, err = exec.Command("readlink", "/proc/self/ns/net").Output()
	if err != nil || strings.Contains(string(out), fmt.Sprint(id.inode)) {
		t.Errorf("this process stayed inside: %s %v", out, err)
	}
	_, err = l.Host("a").Command(t.Context(), "sh", "-c", "echo broken >&2; exit 3").Output()
	if err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("error %v does not tell standard error", err)
	}
}

// A process that has left its parent's group and session is the lab's still.
func TestCloseKillsWhatOutlivedItsParent(t *testing.T) {
	l := newLab(t, "a")
	out, err := l.Host("a").Command(t.Context(), "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(out))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if running(pid) {
		t.Errorf("process %s is left", pid)
	}
}

// running says whether a process exists and is more than a zombie.
func running(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func TestKeptLabStaysUntilRemoved(t *testing.T) {
	needRoot(t)
	l, err := New(t.Context(), Config{Hosts: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	// Unless the test gets there itself, which it reports.
	t.Cleanup(func() { _ = Remove(context.WithoutCancel(t.Context()), l.Name()) })
	if err := Remove(t.Context(), l.Name()); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("remove under the owner: %v", err)
	}
	if err := l.Keep(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	removed, err := Sweep(t.Context())
	if err != nil || slices.Contains(removed, l.Name()) {
		t.Fatalf("sweep removed %v: %v", removed, err)
	}
	infos, err := List()
	if err != nil || !slices.ContainsFunc(infos, func(i Info) bool { return i.Name == l.Name() && i.Kept }) {
		t.Errorf("a kept lab is not listed: %v %v", infos, err)
	}
	if _, err := New(t.Context(), Config{Name: l.Name()}); fleet.CodeOf(err) != fleet.Exists {
		t.Errorf("a second lab of the same name: %v", err)
	}
	if err := Remove(t.Context(), l.Name()); err != nil {
		t.Fatal(err)
	}
	checkGone(t, l.info)
	if err := Remove(t.Context(), l.Name()); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("remove what is gone: %v", err)
	}
}

func TestConfigRefused(t *testing.T) {
	for name, config := range map[string]Config{
		"lab name with a dash":  {Name: "a-b"},
		"lab name upwards":      {Name: "../x"},
		"host named as network": {Hosts: []string{"net"}},
		"host given twice":      {Hosts: []string{"a", "a"}},
		"host with a slash":     {Hosts: []string{"a/b"}},
		"MTU too small":         {MTU: 1500},
		"too many hosts":        {Hosts: manyHosts(MaxHosts + 1)},
	} {
		if _, err := New(t.Context(), config); fleet.CodeOf(err) != fleet.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func manyHosts(n int) []string {
	var hosts []string
	for i := range n {
		hosts = append(hosts, fmt.Sprint("h", i))
	}
	return hosts
}

func TestImplausibleStateIsNotActedOn(t *testing.T) {
	for _, info := range []Info{
		{Name: "other"},
		{Name: "x", Dir: "/home/somebody"},
		{Name: "x", Namespaces: []string{"customer"}},
		{Name: "x", Namespaces: []string{"gw-x-/../customer"}},
	} {
		if info.plausible("x") == nil {
			t.Errorf("%+v would be removed", info)
		}
	}
	whole := Info{Name: "x", Dir: "/tmp/godwit-lab-x-1", Namespaces: []string{"gw-x-net", "gw-x-a"}}
	if err := whole.plausible("x"); err != nil {
		t.Error(err)
	}
}
