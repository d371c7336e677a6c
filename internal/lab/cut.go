package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"godwit.dev/godwit/internal/fleet"
)

// Traffic is a part of what one host sends to another.
type Traffic string

// The parts.
const (
	AllTraffic Traffic = "all"
	TCPTraffic Traffic = "tcp" // between hosts that is QEMU's migration alone: frames go by UDP
)

// Offsets in an Ethernet frame with IPv4, and what is looked for there.
const (
	atEtherType, etherIPv4 = 12, 0x0800
	atProtocol, tcp        = 23, 6
	atSource               = 26
)

// What a program at a device tells the kernel to do (linux/bpf.h, enum
// tcx_action_base).
const (
	tcxNext = -1
	tcxDrop = 2
)

// Cut keeps the packets that one host sends to another from arriving, as a
// link does that fails in one direction. Nobody is told: packets that are
// sent meanwhile are gone. Heal ends it; so does the end of this process.
func (l *Lab) Cut(from, to string, traffic Traffic) (*Cut, error) {
	source, target := l.Host(from), l.Host(to)
	if source == nil || target == nil {
		return nil, &fleet.Error{Code: fleet.NotFound, Op: "cut", Subject: from + " to " + to, Cause: "there is no such host"}
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lab_cut", Type: ebpf.SchedCLS, License: "MIT", Instructions: dropFrom(source.Addr, traffic),
	})
	if err != nil {
		return nil, fmt.Errorf("cut %s from %s: %w", to, from, err)
	}
	c := &Cut{program: program}
	err = target.Do(func() error {
		device, err := netlink.LinkByName(HostDevice)
		if err != nil {
			return err
		}
		c.attached, err = link.AttachTCX(link.TCXOptions{
			Interface: device.Attrs().Index, Program: program, Attach: ebpf.AttachTCXIngress,
		})
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cut %s from %s: %w", to, from, err), program.Close())
	}
	return c, nil
}

// Cut is one direction between two hosts that is cut.
type Cut struct {
	program  *ebpf.Program
	attached link.Link
}

// Heal lets packets arrive again.
func (c *Cut) Heal() error { return errors.Join(c.attached.Close(), c.program.Close()) }

// dropFrom is a program that drops what a host has sent. The kernel loads from
// packets in network byte order, and what is not there ends the program with
// zero, which lets the packet pass.
func dropFrom(host netip.Addr, traffic Traffic) asm.Instructions {
	address := host.As4()
	program := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1), // where the loads look for the packet
		asm.LoadAbs(atEtherType, asm.Half),
		asm.JNE.Imm(asm.R0, etherIPv4, "pass"),
		asm.LoadAbs(atSource, asm.Word),
		// As a register: a jump's constant would be extended by its sign.
		asm.LoadImm(asm.R7, int64(binary.BigEndian.Uint32(address[:])), asm.DWord),
		asm.JNE.Reg(asm.R0, asm.R7, "pass"),
	}
	if traffic == TCPTraffic {
		program = append(program, asm.LoadAbs(atProtocol, asm.Byte), asm.JNE.Imm(asm.R0, tcp, "pass"))
	}
	return append(program,
		asm.Mov.Imm(asm.R0, tcxDrop), asm.Return(),
		asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("pass"), asm.Return())
}
