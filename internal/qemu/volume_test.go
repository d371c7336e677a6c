package qemu_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/volume"
)

// volumes is a server of the volume "v" for host h1.
type volumes struct {
	t     *testing.T
	store *volume.Store
	at    *net.TCPAddr
	creds string // of h1
	data  string // the volume's bytes
}

func serveVolumes(t *testing.T) *volumes {
	t.Helper()
	authority, err := pki.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	credentials := func(id pki.Identity) pki.Credentials {
		key, request, err := pki.NewKeyAndRequest(id.Name)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := authority.Sign(request, id, pki.Names{}, 0, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return pki.Credentials{Certificate: cert, Key: key, Authority: authority.CertificatePEM()}
	}
	dir := t.TempDir()
	v := &volumes{t: t, creds: filepath.Join(dir, "h1"), data: filepath.Join(dir, "volumes", "v", "data")}
	if err := credentials(pki.Identity{Kind: pki.Host, Name: "h1"}).WriteQEMUCreds(v.creds); err != nil {
		t.Fatal(err)
	}
	if err := credentials(pki.Identity{Kind: pki.Volume, Name: "v1"}).Save(filepath.Join(dir, "v1")); err != nil {
		t.Fatal(err)
	}
	keeper, err := pki.OpenKeeper(filepath.Join(dir, "v1"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if v.store, err = volume.Open(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := v.store.Create("v", fleet.MiB, ""); err != nil {
		t.Fatal(err)
	}
	v.serve(keeper.ServerConfig())
	return v
}

func (v *volumes) serve(config *tls.Config) {
	v.t.Helper()
	config.ClientAuth = tls.RequireAndVerifyClientCert
	server := volume.NewServer(volume.Config{
		Volumes: v.store, TLS: config, Log: slog.New(slog.DiscardHandler),
		Identify: func(tls.ConnectionState) (volume.Peer, error) { return volume.Peer{Host: "h1"}, nil },
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		v.t.Fatal(err)
	}
	v.at = listener.Addr().(*net.TCPAddr)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	v.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			v.t.Error(err)
		}
		if err := v.store.Close(); err != nil {
			v.t.Error(err)
		}
	})
}

func volumeKey(epoch fleet.Epoch) []byte { return fmt.Appendf(nil, "the key of epoch %8d", epoch) }

func (v *volumes) grant(epoch fleet.Epoch) {
	v.t.Helper()
	if _, err := v.store.Grant("v", volume.Standby{Epoch: epoch, Host: "h1", Key: volume.HashKey(volumeKey(epoch))}); err != nil {
		v.t.Fatal(err)
	}
}

func (v *volumes) activate(epoch fleet.Epoch) {
	v.t.Helper()
	if err := v.store.Activate([]fleet.VolumeName{"v"}, epoch, "h1", volumeKey(epoch)); err != nil {
		v.t.Fatal(err)
	}
}

func (v *volumes) export(epoch fleet.Epoch) qemu.Volume {
	return qemu.Volume{Server: v.at.AddrPort(), TLSHostname: pki.VolumeServerName("v1"), Export: fmt.Sprintf("v@%d", epoch)}
}

func (v *volumes) config(binary string, epoch fleet.Epoch) qemu.Config {
	c := config(v.t, binary)
	export := v.export(epoch)
	c.Disks, c.VolumeCreds = []qemu.Disk{{Name: "root", Format: "raw", Volume: &export}}, v.creds
	return c
}

// move has an instance go over to an epoch's export, which must not wait for one
// that was cut.
func (v *volumes) move(i *qemu.Instance, epoch fleet.Epoch) {
	v.t.Helper()
	ctx := within(v.t)
	if err := i.MoveVolumes(ctx, map[string]qemu.Volume{"root": v.export(epoch)}, v.creds); err != nil {
		v.t.Fatal(err)
	}
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := i.Monitor().Execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil || len(nodes) != 2 {
		v.t.Errorf("the disk has the nodes %v, %v", nodes, err)
	}
}

// write writes by the disk of an instance, as its guest does, and tells whether the
// volume has it.
func (v *volumes) write(i *qemu.Instance, pattern byte) (done bool) {
	v.t.Helper()
	line := fmt.Sprintf("qemu-io -d /machine/peripheral/disk0-card/virtio-backend \"write -P %d 4096 512\"", pattern)
	if err := i.Monitor().Execute(within(v.t), "human-monitor-command", map[string]string{"command-line": line}, nil); err != nil {
		v.t.Error(err)
	}
	data, err := os.ReadFile(v.data)
	if err != nil {
		v.t.Fatal(err)
	}
	return bytes.Equal(data[4096:4096+512], bytes.Repeat([]byte{pattern}, 512))
}

// An instance goes over to another connection while it runs; and after a migration
// that its target has taken the volume for, and then has not run, to another epoch.
func TestVolumes(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		v := serveVolumes(t)
		v.grant(1)
		source := start(t, v.config(binary, 1))
		if v.write(source, 0x10) {
			t.Error("a standby has written")
		}
		v.activate(1)
		resume(t, source)
		if !v.write(source, 0x11) {
			t.Error("the first one does not write")
		}
		v.move(source, 1)
		v.move(source, 1)
		if !v.write(source, 0x12) {
			t.Error("after going over it does not write")
		}

		v.grant(2)
		c := v.config(binary, 2)
		c.Incoming = true
		target := start(t, c)
		migrate(t, source, target)
		settled(t, source, "postmigrate")
		v.activate(2)
		if err := target.Kill(within(t)); err != nil {
			t.Fatal(err)
		}
		v.grant(3)
		v.move(source, 3)
		v.activate(3)
		resume(t, source)
		if !v.write(source, 0x13) {
			t.Error("after it was taken back it does not write")
		}
	})
}
