package fleet

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// VMName names a VM: a DNS label, unique in the fleet.
type VMName string

// HostName names a host: a DNS label, unique in the fleet. It is also the
// common name of the host's certificate.
type HostName string

// NetworkName names a network: a DNS label, unique in the fleet.
type NetworkName string

// VolumeName names a volume: a DNS label, unique on its volume server.
type VolumeName string

// MigrationID names one migration, unique for ever.
type MigrationID string

// InstanceUID names a VM for its whole life; unlike its name it is never used
// again. A random UUID in its textual form.
type InstanceUID string

// Epoch grows by at least one with every change of a VM's owner. Every right
// to act for the VM is tied to one epoch. Zero means "no owner yet".
type Epoch uint64

// TunnelID is the VXLAN network identifier (24 bits) that carries the frames
// of one migration between its two hosts.
type TunnelID uint32

// MaxTunnelID is the largest VXLAN network identifier (RFC 7348, section 5).
const MaxTunnelID TunnelID = 1<<24 - 1

var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$`)

// CheckName reports why name cannot name a VM, host, network, volume, disk or port:
// names are DNS labels of at most 40 characters.
func CheckName(name string) error {
	if label.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%q is not a name: use 1 to 40 lower-case letters, digits and hyphens, beginning and ending with a letter or digit", name)
}

// maxDevice is IFNAMSIZ of Linux without the final zero byte.
const maxDevice = 15

// CheckDevice reports why no network device of a Linux host, a bridge among them, can
// have that name.
func CheckDevice(name string) error {
	switch {
	case name == "" || len(name) > maxDevice:
		return fmt.Errorf("%q is not the name of a network device: those have 1 to %d bytes", name, maxDevice)
	case name == "." || name == ".." || strings.ContainsAny(name, "/:% ") || strings.ContainsFunc(name, notPrintable):
		return fmt.Errorf("%q is not the name of a network device: those are printable, without spaces and /:%%", name)
	}
	return nil
}

func notPrintable(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }

var requestID = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

// CheckRequestID reports why a client cannot call its request that.
func CheckRequestID(id string) error {
	if requestID.MatchString(id) {
		return nil
	}
	return errors.New("must be 1 to 128 letters, digits and -._")
}
