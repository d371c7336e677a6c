package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/witness"
)

var (
	guestMAC  = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	guestAddr = netip.MustParseAddr("192.0.2.2")
	guestSix  = netip.MustParseAddr("2001:db8::2")
)

// bench is a client and a QEMU on one host, joined by a bridge.
type bench struct {
	client *lab.Namespace
	disk   string
	ready  witness.Report
	exited chan error
}

// boot starts the lab's guest on a QEMU and waits until it says "ready".
func boot(t *testing.T, qemu string) *bench {
	t.Helper()
	img, err := image.Locate()
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(t.Context(), lab.Config{Hosts: []string{"host"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &bench{disk: filepath.Join(l.Dir(), "disk.raw"), exited: make(chan error, 1)}
	b.client, err = l.AddClient("client", lab.Port{
		Host: "host", Device: "client0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Host("host").Do(joinTap); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	args := witness.Args{
		Ports: []witness.Port{{MAC: guestMAC, Addresses: []netip.Prefix{
			netip.PrefixFrom(guestAddr, 24), netip.PrefixFrom(guestSix, 64),
		}}},
		Load: witness.Load{BytesPerSecond: 4 << 20, SetMiB: 8},
		Disk: witness.Disk{Rate: 50},
	}
	cmd := l.Host("host").Command(t.Context(), qemu,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-machine", "pc", "-accel", "tcg,tb-size=64", "-cpu", "qemu64", "-m", "96",
		"-kernel", img.Kernel, "-initrd", img.Initrd, "-append", args.CommandLine(),
		"-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no,queues=2",
		"-device", "virtio-net-pci,netdev=n,mq=on,vectors=6,romfile=,mac="+guestMAC.String(),
		"-drive", "file="+b.disk+",format=raw,if=virtio,cache=none")
	cmd.Stderr = os.Stderr
	serial, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(serial)
	b.ready = firstReport(t, lines)
	t.Logf("ready after %s", time.Since(begun))
	go func() {
		io.Copy(io.Discard, lines)
		b.exited <- cmd.Wait()
	}()
	return b
}

// joinTap bridges a tap of two queues, as QEMU will open it, with the client.
func joinTap() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	attrs.Name = "tap0"
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Queues: 2,
		Flags: netlink.TUNTAP_MULTI_QUEUE_DEFAULTS | netlink.TUNTAP_VNET_HDR}
	if err := netlink.LinkAdd(tap); err != nil {
		return err
	}
	for _, file := range tap.Fds {
		file.Close() // QEMU opens it by name
	}
	for _, name := range []string{"br0", "tap0", "client0"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if name != "br0" {
			if err := netlink.LinkSetMaster(link, bridge); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	return nil
}

// firstReport reads the serial console up to the guest's first line.
func firstReport(t *testing.T, serial *bufio.Reader) witness.Report {
	t.Helper()
	for {
		line, err := serial.ReadBytes('\n')
		if err != nil {
			t.Fatalf("serial console: %v", err)
		}
		var report witness.Report
		if json.Unmarshal(line, &report) != nil {
			continue // the kernel's
		}
		if report.Kind != witness.KindReady {
			t.Fatalf("the guest is not ready: %s", line)
		}
		return report
	}
}

func TestGuest(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	t.Run("installed QEMU", func(t *testing.T) { testGuest(t, "qemu-system-x86_64") })
	t.Run("QEMU 7.2", func(t *testing.T) {
		qemu := os.Getenv("GODWIT_QEMU72")
		if qemu == "" {
			t.Skip("GODWIT_QEMU72 does not name a QEMU 7.2; see 'make qemu72'")
		}
		testGuest(t, qemu)
	})
}

func testGuest(t *testing.T, qemu string) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	b := boot(t, qemu)
	if len(b.ready.Ports) != 1 || b.ready.Ports[0].Queues != 2 || b.ready.Ports[0].MTU != 1500 {
		t.Errorf("ports %+v, want one with two queues", b.ready.Ports)
	}
	checkTraffic(ctx, t, b)
	guest := Guest{Place: b.client, Addr: guestSix}
	checkLoad(ctx, t, guest)
	if err := guest.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-b.exited:
		if err != nil {
			t.Errorf("QEMU: %v", err)
		}
	case <-ctx.Done():
		t.Fatal("the guest does not power off")
	}
	checkDisk(t, b)
}

// checkTraffic talks to the guest by UDP over both families, and by TCP.
func checkTraffic(ctx context.Context, t *testing.T, b *bench) {
	stream, err := StartTCP(ctx, b.client, TCPConfig{Target: netip.AddrPortFrom(guestAddr, 0), Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, config := range []UDPConfig{
		{Target: netip.AddrPortFrom(guestAddr, 0)},
		{Target: netip.AddrPortFrom(guestSix, 0), Size: 1452},
	} {
		u, err := StartUDP(b.client, config)
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Answered(ctx, u.Begun(), 500); err != nil {
			t.Error(err)
		}
		r, err := u.Stop(ctx)
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s: %+v", config.Target.Addr(), r)
		// Not the order: a tap of several queues steers a flow by the queue that
		// the guest last sent it from, so a flow that changes queues may overtake
		// itself (tun's flow table).
		if r.Lost+r.Duplicated+r.Corrupted+r.Replayed+r.Reboots != 0 {
			t.Errorf("%s: %+v", config.Target.Addr(), r)
		}
		report, err := Guest{Place: b.client, Addr: guestAddr}.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var flow witness.Flow
		if i := slices.IndexFunc(report.Flows, func(f witness.Flow) bool { return f.Flow == u.Flow() }); i >= 0 {
			flow = report.Flows[i]
		}
		if flow.Received != r.Sent || flow.Lost() != 0 || flow.Duplicated != 0 {
			t.Errorf("the guest saw %+v of %d packets", flow, r.Sent)
		}
	}
	if r := stream.Stop(ctx); r.Broken || r.Bytes == 0 {
		t.Errorf("stream: %+v", r)
	}
}

// checkLoad changes the load on the guest's memory and sees it take effect.
func checkLoad(ctx context.Context, t *testing.T, guest Guest) {
	before, err := guest.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if before.Load.BytesPerSecond != 4<<20 || before.Load.SetMiB != 8 || before.Load.Pages == 0 || before.Load.Work != before.Load.Pages {
		t.Errorf("load from the command line: %+v", before.Load)
	}
	if err := guest.SetLoad(ctx, witness.Load{SetMiB: 1 << 19}); err == nil {
		t.Error("a set larger than the guest's memory is accepted")
	}
	if kept, err := guest.Status(ctx); err != nil || kept.Load.Load != before.Load.Load {
		t.Errorf("a refused load left %+v: %v", kept.Load, err)
	}
	if err := guest.SetLoad(ctx, witness.Load{}); err != nil {
		t.Fatal(err)
	}
	idle, err := guest.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	later, err := guest.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if later.Load.Pages != idle.Load.Pages || later.Ticks <= before.Ticks || len(later.Disks) != 1 || later.Disks[0].Errors != 0 {
		t.Errorf("%+v, then %+v", idle, later)
	}
}

// checkDisk reads what the guest wrote: records of its boot without a hole.
func checkDisk(t *testing.T, b *bench) {
	content, err := os.ReadFile(b.disk)
	if err != nil {
		t.Fatal(err)
	}
	blocks := len(content) / witness.BlockSize
	seen, highest := 0, uint64(0)
	for i := range blocks {
		record, err := witness.ParseRecord(content[i*witness.BlockSize : (i+1)*witness.BlockSize])
		if err != nil {
			continue // not written yet
		}
		if record.Boot != b.ready.Boot || record.Sequence%uint64(blocks) != uint64(i) {
			t.Errorf("block %d holds %+v", i, record)
		}
		seen++
		highest = max(highest, record.Sequence)
	}
	if highest == 0 || uint64(seen) != min(highest, uint64(blocks)) {
		t.Errorf("%d records, the highest is %d", seen, highest)
	}
}
