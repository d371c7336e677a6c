// Package probe is a client's traffic with a guest of the lab: numbered UDP
// packets at an even pace, a TCP stream that must come back byte for byte, and
// questions to the guest's control port. What it counts is what a customer
// would notice of a migration.
//
// # Windows
//
// One run of UDP or TCP usually spans many migrations. Mark names the present
// moment; Window gives the figures between two marks. A packet belongs to the
// window in which it was sent, whenever its reply came.
//
// # Precision
//
// Packets are sent by a thread that sleeps to absolute times with no timer
// slack, and sends late ones in bounded batches. Replies carry the kernel's
// time of reception. The probe also measures itself: LongestSendGap is its
// own longest stall, OwnDrops what its own socket had no room for. A run in
// which these are large says little about the network.
//
// # Goroutines
//
// A UDP or TCP probe runs two goroutines from Start to Stop; Stop waits for
// them and closes the socket, and must be called. All other methods may be
// called at any time from any goroutine.
package probe
