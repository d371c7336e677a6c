package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mountAll mounts what a Linux userspace expects to find.
func mountAll() error {
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

// loadModules inserts the kernel modules of dir in the order of its file
// "order". A module that is there already is no error.
func loadModules(dir string) error {
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

// powerOff ends the machine; it does not return.
func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// Of linux/input.h and linux/input-event-codes.h.
const (
	inputEventSize = 24
	evKey          = 1
	keyPower       = 116
)

// watchPowerButton powers off when the ACPI power button is pressed, as QMP's
// system_powerdown does. A machine without the button is not watched.
func watchPowerButton() {
	paths, _ := filepath.Glob("/dev/input/event*") // the pattern is well-formed
	for _, path := range paths {
		device, err := os.Open(path)
		if err != nil {
			continue
		}
		go func() {
			event := make([]byte, inputEventSize)
			for {
				if _, err := device.Read(event); err != nil {
					return
				}
				kind, code := binary.NativeEndian.Uint16(event[16:]), binary.NativeEndian.Uint16(event[18:])
				if kind == evKey && code == keyPower && binary.NativeEndian.Uint32(event[20:]) == 1 {
					powerOff()
				}
			}
		}()
	}
}
