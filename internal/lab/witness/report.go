package witness

// Report is the guest's view of itself. The guest prints one as a line of JSON
// on its serial console every second, and answers one on its control port.
// Durations and clocks are nanoseconds on the guest's monotonic clock, which
// stands still while no vCPU runs.
type Report struct {
	Kind         string       `json:"godwit"` // KindReady, KindReport or KindFatal
	Error        string       `json:"error,omitempty"`
	Boot         uint64       `json:"boot"`
	Clock        int64        `json:"clock_ns"`
	Ticks        uint64       `json:"ticks"`            // of a 1 ms ticker
	LongestPause int64        `json:"longest_pause_ns"` // between two ticks, since boot
	Counter      uint64       `json:"counter"`          // UDP packets handled
	Ports        []PortReport `json:"ports,omitempty"`
	Flows        []Flow       `json:"flows,omitempty"`
	TCPBytes     uint64       `json:"tcp_bytes"` // bytes echoed
	Load         LoadReport   `json:"load"`
	Disks        []DiskReport `json:"disks,omitempty"` // /dev/vda, /dev/vdb and so on
}

// Kinds of report.
const (
	KindReady  = "ready"  // ports are up and served
	KindReport = "report" // the regular one
	KindFatal  = "fatal"  // the guest cannot go on and powers off
)

// PortReport is a network port as the guest's kernel sees it.
type PortReport struct {
	Name      string   `json:"name"`
	MAC       string   `json:"mac"`
	Addresses []string `json:"addresses"`
	MTU       int      `json:"mtu"`
	Queues    int      `json:"queues"` // combined channels in use
	RxPackets uint64   `json:"rx_packets"`
	TxPackets uint64   `json:"tx_packets"`
	RxDropped uint64   `json:"rx_dropped"`
}

// LoadReport says what work the guest does, and how much it has done. The work of
// some time on the guest's own clock, before a migration and during it, is how much
// the migration has slowed it down.
type LoadReport struct {
	Load             // as it was given
	Phase      int   `json:"phase"`          // of Load.Phases, that it has come to
	PhaseBegun int64 `json:"phase_begun_ns"` // on the guest's clock
	// Of all loads since boot: units of work done, and the pages among them that were
	// written in the guest's own memory.
	Work  uint64 `json:"work"`
	Pages uint64 `json:"pages"`
	Error string `json:"load_error,omitempty"` // why the load has ended
}

// DiskReport says what the guest has written to one disk.
type DiskReport struct {
	Written     uint64 `json:"written"` // sequence number of the last write that was acknowledged
	Errors      uint64 `json:"errors"`
	LastError   string `json:"last_error,omitempty"`
	LongestWait int64  `json:"longest_wait_ns"` // longest time that one write took
}

// Request is one line to the control port. Every request is answered by a
// Report made after it took effect, or one of KindFatal that says why not.
type Request struct {
	Op   string `json:"op"` // one of the operations
	Load Load   `json:"load,omitzero"`
	Disk Disk   `json:"disk,omitzero"`
	Port string `json:"port,omitempty"` // as it stands on the command line
}

// Operations of the control port.
const (
	OpStatus   = "status"
	OpLoad     = "load"     // do this work from now on; the answer is made when all is ready for it
	OpDisk     = "disk"     // write records like this from now on, to the disks that there are
	OpPort     = "port"     // bring this port up, too
	OpPowerOff = "poweroff" // power off after the answer
)
