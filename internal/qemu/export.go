package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

// Export lets the source of a target that listens write to its local disks, and
// gives the TCP port at which it does. It may be called again.
func (i *Instance) Export(ctx context.Context, in Incoming) (port uint16, err error) {
	port, err = i.export(ctx, in)
	return port, i.wrap("export disks", err)
}

func (i *Instance) export(ctx context.Context, in Incoming) (port uint16, err error) {
	migration, err := i.Port(ctx)
	if err != nil {
		return 0, err
	}
	port, err = i.listensAt(migration)
	if fleet.CodeOf(err) == fleet.NotFound {
		if err := qmp.NBDServerStart(ctx, i.monitor, serverOf(in)); err != nil {
			return 0, err
		}
		port, err = i.listensAt(migration)
	}
	if err != nil {
		return 0, err
	}
	known, err := i.exports(ctx)
	if err != nil {
		return 0, err
	}
	for _, id := range i.localDisks() {
		if slices.Contains(known, id) {
			continue
		}
		export := qmp.BlockExportAddArgs{Type: "nbd", ID: id, Name: &id, NodeName: id, Writable: new(true)}
		if err := qmp.BlockExportAdd(ctx, i.monitor, export); err != nil {
			return 0, err
		}
	}
	return port, nil
}

// serverOf describes the server of the exports: for the same peer as the guest's
// state.
func serverOf(in Incoming) qmp.NBDServerStartArgs {
	data, _ := json.Marshal(map[string]string{"host": in.Listen.String(), "port": "0"})
	args := qmp.NBDServerStartArgs{Addr: qmp.NBDServerStartArgsAddr{Type: qmp.SocketAddressTypeInet, Data: data}}
	if in.CredsDir != "" {
		args.TLSCreds, args.TLSAuthz = new(credsObject), new(authzObject)
	}
	return args
}

// EndExports takes the disks back. Whoever writes to them is cut off: the source has
// written everything before, or is not to write any more. It may be called again.
func (i *Instance) EndExports(ctx context.Context) error {
	return i.wrap("end the export of disks", i.endExports(ctx))
}

// endExports is in the blackout, so it asks nothing that it need not.
func (i *Instance) endExports(ctx context.Context) error {
	events := i.monitor.Subscribe(eventQueue, qmp.EventBlockExportDeleted)
	defer events.Close()
	under := 0
	for _, id := range i.localDisks() {
		err := qmp.BlockExportDel(ctx, i.monitor, qmp.BlockExportDelArgs{ID: id, Mode: qmp.BlockExportRemoveModeHard})
		if err == nil {
			under++
			continue
		}
		known, askErr := i.exports(ctx)
		if askErr != nil || slices.Contains(known, id) {
			return errors.Join(err, askErr)
		}
	}
	for ; under > 0; under-- {
		select {
		case _, open := <-events.Events():
			if !open {
				return events.Err()
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// StopExporting closes the port of exports that have ended. It may be called again.
func (i *Instance) StopExporting(ctx context.Context) error {
	_, err := i.listensAt(0)
	switch {
	case fleet.CodeOf(err) == fleet.NotFound:
		return nil
	case err == nil:
		err = qmp.NBDServerStop(ctx, i.monitor)
	}
	return i.wrap("end the export of disks", err)
}

// exports lists what is exported.
func (i *Instance) exports(ctx context.Context) (ids []string, err error) {
	list, err := qmp.QueryBlockExports(ctx, i.monitor)
	for _, one := range list {
		ids = append(ids, one.ID)
	}
	return ids, err
}

// localDisks gives the nodes of the disks that are copied.
func (i *Instance) localDisks() (ids []string) {
	for at, disk := range i.Config().Disks {
		if disk.Local {
			ids = append(ids, diskID(fleet.DiskSlot(disk.Slot, at)))
		}
	}
	return ids
}

// listensAt gives the TCP port other than one at which QEMU listens; NotFound if
// there is none. QEMU's monitor does not tell it.
func (i *Instance) listensAt(other uint16) (uint16, error) {
	sockets, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", i.process.pid))
	if err != nil {
		return 0, err
	}
	for _, socket := range sockets {
		number, err := strconv.Atoi(filepath.Base(socket))
		if err != nil {
			continue
		}
		if port := i.listenerPort(number); port != 0 && port != other {
			return port, nil
		}
	}
	return 0, &fleet.Error{Code: fleet.NotFound, Op: "find", Subject: "the port of the exports", Cause: "QEMU does not listen"}
}

// listenerPort gives the port of a descriptor of QEMU's that listens, 0 of others.
func (i *Instance) listenerPort(number int) (port uint16) {
	_ = i.process.control(func(pidfd int) error {
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if err != nil {
			return os.NewSyscallError("pidfd_getfd", err)
		}
		defer unix.Close(fd)
		if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || listens == 0 {
			return err
		}
		address, err := unix.Getsockname(fd)
		switch at := address.(type) {
		case *unix.SockaddrInet4:
			port = uint16(at.Port)
		case *unix.SockaddrInet6:
			port = uint16(at.Port)
		}
		return err
	})
	return port
}
