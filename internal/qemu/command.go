package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// line is a command line in the making, with the descriptors it speaks of.
type line struct {
	args []string
	fds  []int // the caller's; the child has them from firstFD on
	// mortal: the process ends with the thread that starts it.
	mortal bool
}

// firstFD is the first descriptor of a child after the standard three.
const firstFD = 3

// addMonitor adds a monitor on our listening socket. QEMU takes the first client
// before it goes on to start: one that came while it moves the monitor to a thread
// of its own would be heard in two threads, each of which reads a part of what it
// says. Without a client it waits, for an agent that comes after a dead one, too.
func (l *line) addMonitor(listener int) {
	l.add("-chardev", "socket,id=qmp,server=on,wait=on,fd="+l.fd(listener), "-mon", "chardev=qmp,mode=control")
}

func (l *line) add(args ...string) { l.args = append(l.args, args...) }

// fd gives the number that the caller's descriptor has in the child.
func (l *line) fd(callers int) string {
	l.fds = append(l.fds, callers)
	return strconv.Itoa(firstFD + len(l.fds) - 1)
}

func (l *line) fdList(callers []int) string {
	var numbers []string
	for _, fd := range callers {
		numbers = append(numbers, l.fd(fd))
	}
	return strings.Join(numbers, ":")
}

// command makes the command line; listener is the monitor's listening socket.
func (c Config) command(listener int) (*line, error) {
	l := &line{}
	l.add("-name", fmt.Sprintf("guest=%s,process=godwit-%s,debug-threads=on", c.VM, c.VM))
	l.add("-uuid", string(c.UID), "-no-user-config", "-nodefaults", "-display", "none", "-msg", "timestamp=on", "-S")
	l.add("-pidfile", filepath.Join(c.Dir, pidFile))
	// What an escaped guest must not do; none of it is needed to migrate.
	l.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	l.add("-machine", c.Machine, "-accel", accelOption(c.Accel), "-cpu", c.CPUModel)
	l.add("-smp", strconv.Itoa(c.VCPUs), "-m", strconv.FormatUint(uint64(c.Memory/fleet.MiB), 10)+"M")
	l.addMonitor(listener)
	l.add("-chardev", fmt.Sprintf("socket,id=console,server=on,wait=off,path=%s,logfile=%s,logappend=on",
		ConsoleSocket(c.Dir), ConsoleLog(c.Dir)), "-serial", "chardev:console")
	if c.Incoming {
		l.add("-incoming", "defer")
	}
	if c.Kernel != "" {
		l.add("-kernel", c.Kernel, "-append", c.Cmdline)
	}
	if c.Initrd != "" {
		l.add("-initrd", c.Initrd)
	}
	for _, slot := range c.rootPorts() {
		l.addRootPort(slot)
	}
	for i, nic := range c.NICs {
		l.addNIC(c.Machine, fleet.PortSlot(nic.Slot, i), nic)
	}
	if c.volumes() {
		l.addVolumeCreds(c.VolumeCreds)
	}
	for i, disk := range c.Disks {
		if err := l.addDisk(c.Machine, fleet.DiskSlot(disk.Slot, i), disk); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func accelOption(accel string) string {
	if accel == "tcg" {
		// The default translation cache is a large part of the host's memory.
		return "tcg,thread=multi,tb-size=64"
	}
	return accel
}

func (l *line) addNIC(machine string, slot fleet.Slot, nic NIC) {
	id := nicID(slot)
	netdev := "tap,id=" + id
	if len(nic.FDs) == 1 {
		netdev += ",fd=" + l.fd(nic.FDs[0])
	} else {
		netdev += ",fds=" + l.fdList(nic.FDs)
	}
	switch len(nic.VhostFDs) {
	case 0:
		netdev += ",vhost=off"
	case 1:
		netdev += ",vhost=on,vhostfd=" + l.fd(nic.VhostFDs[0])
	default:
		netdev += ",vhost=on,vhostfds=" + l.fdList(nic.VhostFDs)
	}
	l.add("-netdev", netdev, "-device", nicCard(machine, slot, nic).String())
}

// blockNode is what -blockdev reads, in QEMU's words.
type blockNode struct {
	Driver   string      `json:"driver"`
	NodeName string      `json:"node-name"`
	Filename string      `json:"filename,omitempty"`
	File     string      `json:"file,omitempty"`
	ReadOnly bool        `json:"read-only"`
	Discard  string      `json:"discard"`
	Cache    *blockCache `json:"cache,omitempty"`
	Locking  string      `json:"locking,omitempty"`

	DetectZeroes string `json:"detect-zeroes,omitempty"`

	Server         *socketAddress `json:"server,omitempty"` // this and what follows is of NBD
	Export         string         `json:"export,omitempty"`
	TLSCreds       string         `json:"tls-creds,omitempty"`
	TLSHostname    string         `json:"tls-hostname,omitempty"`
	ReconnectDelay int            `json:"reconnect-delay,omitempty"` // seconds
	OpenTimeout    int            `json:"open-timeout,omitempty"`    // seconds
}

type socketAddress struct {
	Type string `json:"type"`
	Host string `json:"host"`
	Port string `json:"port"`
}

type blockCache struct {
	Direct bool `json:"direct"`
}

func (l *line) addDisk(machine string, slot fleet.Slot, disk Disk) error {
	id := diskID(slot)
	nodes, err := diskNodes(id, disk)
	for _, node := range nodes {
		err = errors.Join(err, l.addNode(node))
	}
	l.add("-device", diskCard(machine, slot, disk).String())
	return err
}

// diskNodes gives the nodes of a disk, in the order in which they are opened.
func diskNodes(id string, disk Disk) ([]blockNode, error) {
	file, node := id+"-file", fileNode
	if disk.Volume != nil {
		node = volumeNode
	}
	bottom, err := node(file, disk)
	return []blockNode{bottom, imageNode(id, file, disk)}, err
}

// fileNode is the node of an image.
func fileNode(name string, disk Disk) (blockNode, error) {
	driver, direct, err := openHow(disk)
	if err != nil {
		return blockNode{}, &fleet.Error{Code: fleet.Unavailable, Op: "open disk", Subject: disk.Name, Cause: "the image cannot be opened", Err: err,
			Hint: "the image must be there on every host that may run the VM"}
	}
	return blockNode{
		Driver: driver, NodeName: name, Filename: disk.Path, ReadOnly: disk.ReadOnly,
		Discard: "unmap", Cache: &blockCache{Direct: direct}, Locking: "on",
	}, nil
}

// openHow finds the driver for the path, and whether the page cache can be
// kept out. That matters on file systems whose caches hosts do not share
// coherently; one without O_DIRECT is used with its cache.
func openHow(disk Disk) (driver string, direct bool, err error) {
	info, err := os.Stat(disk.Path)
	if err != nil {
		return "", false, err
	}
	driver = "file"
	if info.Mode().Type() == os.ModeDevice {
		driver = "host_device"
	}
	mode := os.O_RDWR
	if disk.ReadOnly {
		mode = os.O_RDONLY
	}
	file, err := os.OpenFile(disk.Path, mode|unix.O_DIRECT, 0)
	if direct = err == nil; errors.Is(err, unix.EINVAL) {
		file, err = os.OpenFile(disk.Path, mode, 0)
	}
	if err != nil {
		return "", false, err
	}
	return driver, direct, file.Close()
}
