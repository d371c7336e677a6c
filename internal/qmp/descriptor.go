package qmp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

// PassFD gives QEMU a duplicate of a descriptor under a name, by which the next
// command can use it (getfd). One that no command has used is closed by CloseFD.
func (c *Client) PassFD(ctx context.Context, name string, fd int) error {
	const command = "getfd"
	select { // QEMU keeps what came with the newest message only: one at a time
	case c.passing <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("QMP %s: not sent: %w", command, context.Cause(ctx))
	case <-c.done:
		return fmt.Errorf("QMP %s: not sent: %w", command, c.Err())
	}
	defer func() { <-c.passing }()
	return c.execute(ctx, command, request{Execute: command, Arguments: map[string]string{"fdname": name}, fds: []int{fd}}, nil)
}

// CloseFD closes QEMU's duplicate of a descriptor.
func (c *Client) CloseFD(ctx context.Context, name string) error {
	return c.Execute(ctx, "closefd", map[string]string{"fdname": name}, nil)
}

// write writes a line, with descriptors if there are any.
func (c *Client) write(line []byte, fds []int) error {
	if len(fds) == 0 {
		_, err := c.conn.Write(line)
		return err
	}
	socket, ok := c.conn.(*net.UnixConn)
	if !ok {
		return errors.New("descriptors go over Unix sockets only")
	}
	n, _, err := socket.WriteMsgUnix(line, syscall.UnixRights(fds...), nil)
	if err == nil && n < len(line) {
		err = io.ErrShortWrite
	}
	return err
}
