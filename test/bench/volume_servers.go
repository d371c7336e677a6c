package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
)

const (
	volumeName   = "bench"
	volumeServer = "v1"
	readyWithin  = 20 * time.Second
)

// block is a server of the file, as clients see it.
type block struct {
	name string
	uri  string
	pid  int
}

// cpu is the processor time that the server has used so far.
func (b block) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.pid))
	if err != nil {
		return 0, err
	}
	var ticks [2]time.Duration // proc_pid_stat(5): utime and stime, after 11 others behind the name
	rest := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	for i := range ticks {
		if _, err := fmt.Sscan(rest[11+i], &ticks[i]); err != nil {
			return 0, err
		}
	}
	return (ticks[0] + ticks[1]) * 10 * time.Millisecond, nil
}

// blocks are the three servers and what they need.
type blocks struct {
	dir       string
	authority *pki.Authority
	control   *client.VolumeServer // by the socket
	nbd       string               // address of Godwit's NBD
	address   string               // of its VolumeService
	servers   []block
	processes []*exec.Cmd
}

func (b *blocks) in(name string) string { return filepath.Join(b.dir, name) }

// startBlocks starts the three servers of one file.
func startBlocks(ctx context.Context, godwit string, size fleet.Bytes) (_ *blocks, err error) {
	b := &blocks{}
	if b.dir, err = os.MkdirTemp("", "bench"); err != nil {
		return nil, err
	}
	if err := b.startAll(ctx, godwit, size); err != nil {
		b.stop()
		return nil, err
	}
	return b, nil
}

func (b *blocks) startAll(ctx context.Context, godwit string, size fleet.Bytes) (err error) {
	if b.authority, err = pki.NewAuthority(time.Now()); err != nil {
		return err
	}
	for name, id := range map[string]pki.Identity{
		"godwit/certificate": {Kind: pki.Volume, Name: volumeServer}, "host": {Kind: pki.Host, Name: "h1"},
	} {
		if err := b.enrol(b.in(name), id); err != nil {
			return err
		}
	}
	if err := b.startGodwit(ctx, godwit, size); err != nil {
		return err
	}
	return b.startOthers(ctx)
}

// enrol writes a certificate in the form that Godwit reads and in that of all
// others.
func (b *blocks) enrol(dir string, id pki.Identity) error {
	key, request, err := pki.NewKeyAndRequest(id.Name)
	if err != nil {
		return err
	}
	names := pki.Names{IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}
	cert, err := b.authority.Sign(request, id, names, 0, time.Now())
	if err != nil {
		return err
	}
	credentials := pki.Credentials{Certificate: cert, Key: key, Authority: b.authority.CertificatePEM()}
	return errors.Join(credentials.Save(dir), credentials.WriteQEMUCreds(dir))
}

func (b *blocks) startGodwit(ctx context.Context, godwit string, size fleet.Bytes) (err error) {
	if b.nbd, err = freeAddress(); err != nil {
		return err
	}
	if b.address, err = freeAddress(); err != nil {
		return err
	}
	// Its certificate is fresh, so the fleet's server is not missed.
	err = b.start(exec.Command(godwit, "volume", "serve", "--server=https://127.0.0.1:1", "--name="+volumeServer, "--dir="+b.in("godwit"),
		"--run="+b.in("run"), "--listen="+b.nbd, "--control="+b.address, "--log=warn"))
	if err != nil {
		return err
	}
	if err := awaitSocket(ctx, b.in("run/volume.sock")); err != nil {
		return err
	}
	if b.control, err = client.DialVolumeServer(client.Config{Server: "unix://" + b.in("run/volume.sock")}); err != nil {
		return err
	}
	_, err = b.control.Create(ctx, &godwitv1.CreateVolumeRequest{Name: volumeName, SizeBytes: uint64(size)})
	b.servers = append(b.servers, block{"godwit", unixURI(b.in("run/nbd.sock")), b.lastPID()})
	return err
}

// startOthers starts the servers that Godwit is compared with, on its file.
func (b *blocks) startOthers(ctx context.Context) error {
	file := b.in("godwit/volumes/" + volumeName + "/data")
	for _, other := range []struct {
		cmd    *exec.Cmd
		socket string
	}{
		{exec.Command("qemu-storage-daemon", "--nbd-server", "addr.type=unix,addr.path="+b.in("qsd.sock"),
			"--blockdev", "driver=file,node-name=file,locking=off,discard=unmap,filename="+file,
			"--export", "nbd,id=e,node-name=file,writable=on,name="+volumeName), "qsd.sock"},
		{exec.Command("nbdkit", "-f", "-U", b.in("nbdkit.sock"), "-e", volumeName, "file", file), "nbdkit.sock"},
	} {
		if err := b.start(other.cmd); err != nil {
			return err
		}
		b.servers = append(b.servers, block{filepath.Base(other.cmd.Path), unixURI(b.in(other.socket)), b.lastPID()})
		if err := awaitSocket(ctx, b.in(other.socket)); err != nil {
			return err
		}
	}
	return nil
}

func (b *blocks) lastPID() int { return b.processes[len(b.processes)-1].Process.Pid }

// start runs a server. What it says of clients that only look whether it is
// there nobody wants to see.
func (b *blocks) start(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	b.processes = append(b.processes, cmd)
	return nil
}

func (b *blocks) stop() {
	for _, process := range b.processes {
		_ = process.Process.Kill()
		_ = process.Wait()
	}
	if b.control != nil {
		b.control.Close()
	}
	_ = os.RemoveAll(b.dir)
}

func unixURI(socket string) string { return "nbd+unix:///" + volumeName + "?socket=" + socket }

// freeAddress gives a port that nobody uses now.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

func awaitSocket(ctx context.Context, path string) error {
	limit, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-limit.Done():
			return fmt.Errorf("nobody listens to %s: %w", path, err)
		}
	}
}
