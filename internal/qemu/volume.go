package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

// Volume is a disk that is served by NBD, over TLS.
type Volume struct {
	Server      netip.AddrPort
	TLSHostname string // in the server's certificate
	Export      string
}

const (
	// volumeCreds is the QEMU object with which volumes' servers are reached.
	volumeCreds = "godwit-volumes"
	// reconnectDelay is how long requests wait for a server that is away, in
	// seconds, before the guest is stopped by an I/O error. While they wait, a stop
	// of the guest waits with them, and so does QEMU's monitor.
	reconnectDelay = 10
	// openTimeout is how long a server may be away at the start, in seconds.
	openTimeout = 5
)

// node is how QEMU opens the volume.
func (v Volume) node(name string, readOnly bool) blockNode {
	return blockNode{
		Driver: "nbd", NodeName: name, ReadOnly: readOnly, Discard: "unmap",
		Server: &socketAddress{Type: "inet", Host: v.Server.Addr().String(), Port: strconv.Itoa(int(v.Server.Port()))},
		Export: v.Export, TLSCreds: volumeCreds, TLSHostname: v.TLSHostname,
		ReconnectDelay: reconnectDelay, OpenTimeout: openTimeout,
	}
}

// check finds what can never work.
func (v Volume) check() error {
	if !v.Server.IsValid() || v.Export == "" || v.TLSHostname == "" {
		return fmt.Errorf("%+v is no volume", v)
	}
	return nil
}

// volumes tells whether any of the disks is one.
func (c Config) volumes() bool {
	return slices.ContainsFunc(c.Disks, func(d Disk) bool { return d.Volume != nil })
}

// MoveVolumes makes disks that are volumes use other exports, by disk name, with
// the credentials of a folder, which are read anew. What is written by then must
// have been, or the guest be stopped and sent: an export that is cut can't be left
// by a guest that may run.
func (i *Instance) MoveVolumes(ctx context.Context, to map[string]Volume, credsDir string) error {
	if err := i.readCreds(ctx, volumeCreds, credsDir); err != nil {
		return i.wrap("read credentials of volumes", err)
	}
	for at, disk := range i.Config().Disks {
		if volume, moves := to[disk.Name]; moves && disk.Volume != nil {
			if err := i.moveVolume(ctx, diskID(fleet.DiskSlot(disk.Slot, at)), disk, volume); err != nil {
				return i.wrap("move disk "+disk.Name, err)
			}
		}
	}
	return nil
}

// moveVolume opens the new export beside the older one, which may be of an earlier
// try, and has the disk use it.
func (i *Instance) moveVolume(ctx context.Context, id string, disk Disk, to Volume) error {
	older, err := i.nodesOf(ctx, id)
	if err != nil {
		return err
	}
	older = slices.DeleteFunc(older, func(name string) bool { return name == id })
	next := id + "-file"
	for n := 2; slices.Contains(older, next); n++ {
		next = fmt.Sprintf("%s-file-%d", id, n)
	}
	if err := i.monitor.Execute(ctx, "blockdev-add", to.node(next, disk.ReadOnly), nil); err != nil {
		return err
	}
	reopen := map[string][]blockNode{"options": {imageNode(id, next, disk)}}
	if err := i.monitor.Execute(ctx, "blockdev-reopen", reopen, nil); err != nil {
		return err
	}
	for _, node := range older {
		if err := i.delNode(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// delNode removes a node that nothing uses any more.
func (i *Instance) delNode(ctx context.Context, node string) error {
	// Else its end waits for a server that has cut it. One that is another's node by
	// now can't be yanked, and is deleted all the same.
	_ = qmp.Yank(ctx, i.monitor, qmp.YankArgs{Instances: []qmp.YankInstance{{Type: qmp.YankInstanceTypeBlockNode, NodeName: &node}}})
	return i.monitor.Execute(ctx, "blockdev-del", map[string]string{"node-name": node}, nil)
}

// readCreds reads the credentials of a folder anew, for connections that are made
// from now on.
func (i *Instance) readCreds(ctx context.Context, id, dir string) error {
	creds := credentials(dir, "client")
	creds.ID = id
	return i.replaceObject(ctx, creds)
}

// imageNode is the disk's format above the node of its bytes.
func imageNode(id, file string, disk Disk) blockNode {
	return blockNode{Driver: disk.Format, NodeName: id, File: file, ReadOnly: disk.ReadOnly, Discard: "unmap"}
}

// addVolumeCreds adds the credentials with which volumes' servers are reached.
func (l *line) addVolumeCreds(dir string) {
	l.add("-object", fmt.Sprintf("tls-creds-x509,id=%s,endpoint=client,verify-peer=on,dir=%s", volumeCreds, dir))
}

// volumeNode is the node of a volume.
func volumeNode(name string, disk Disk) (blockNode, error) {
	if err := disk.Volume.check(); err != nil {
		return blockNode{}, &fleet.Error{Code: fleet.Invalid, Op: "open disk", Subject: disk.Name, Err: err}
	}
	return disk.Volume.node(name, disk.ReadOnly), nil
}

func (l *line) addNode(node blockNode) error {
	text, err := json.Marshal(node)
	if err == nil {
		l.add("-blockdev", string(text))
	}
	return err
}
