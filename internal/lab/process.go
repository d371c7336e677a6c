package lab

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Cmd is an exec.Cmd that starts inside a namespace, in a process group of
// its own: the Ctrl-C that a terminal sends reaches the lab's owner only. Its
// mounts, unlike those of "ip netns exec", are the caller's.
type Cmd struct {
	*exec.Cmd
	namespace *Namespace
}

// Command gives a program to be started in the namespace. As with
// exec.CommandContext it is killed when ctx ends; what it started is not.
func (n *Namespace) Command(ctx context.Context, name string, args ...string) *Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return &Cmd{Cmd: cmd, namespace: n}
}

// Start starts the program.
func (c *Cmd) Start() error { return c.namespace.Do(c.Cmd.Start) }

// Run starts the program and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the program and gives its standard output. Its standard error
// is in the error.
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", filepath.Base(c.Path), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), err
}

// CombinedOutput runs the program and gives both its outputs.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var both bytes.Buffer
	c.Stdout, c.Stderr = &both, &both
	err := c.Run()
	return both.Bytes(), err
}
