package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"godwit.dev/godwit/internal/lab/pid1"
)

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
					pid1.PowerOff()
				}
			}
		}()
	}
}

// runProgram runs a program of the image, and says how it ended, which it should not.
func runProgram(ctx context.Context, words []string) error {
	program := exec.CommandContext(ctx, words[0], words[1:]...)
	program.Stderr = os.Stderr
	return fmt.Errorf("%s has ended: %w", words[0], program.Run())
}
