// Package pid1 is what the first process of a lab's machine has to do before it can
// do anything else, and at the end.
package pid1

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Mount mounts what a Linux userspace expects to find.
func Mount() error {
	for _, m := range []struct{ fs, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		err := unix.Mount(m.fs, m.dir, m.fs, 0, "")
		if err != nil && !errors.Is(err, unix.EBUSY) { // devtmpfs may be there
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// LoadModules inserts the kernel modules of dir in the order of its file
// "order". A module that is there already is no error.
func LoadModules(dir string) error {
	order, err := os.Open(filepath.Join(dir, "order"))
	if err != nil {
		return err
	}
	defer order.Close()
	lines := bufio.NewScanner(order)
	for lines.Scan() {
		if err := loadModule(filepath.Join(dir, lines.Text())); err != nil {
			return err
		}
	}
	return lines.Err()
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	err = unix.FinitModule(int(file.Fd()), "", 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// PowerOff ends the machine; it does not return.
func PowerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}
