// Command bench measures migrations in a lab on this machine. The benchmarks
// are
//
//	handover  Godwit against plain QEMU, in pairs
//	client    what a client sees under different traffic, and of cancels
//
// and without an argument both. A third one, which has no lab, is
//
//	volume    godwit volume against qemu-storage-daemon and nbdkit
//
// and a fourth
//
//	disk      a VM with a local disk against one without
//
// and a fifth
//
//	tcp       the throughput of TCP through a migration
//
// Each prints a line for every migration, a
// table, and the targets with what was found, and writes everything to
// out/bench-NAME.json. The program fails if Godwit lost or doubled anything;
// how fast something was never makes it fail.
//
// # handover
//
// Both contestants are in one lab at once, each with a VM of its own, a client
// of its own and a network of its own over the same hosts, and move in turns.
// Memory, guest, traffic and what the guest writes are the same. The one that
// waits has no traffic, and its QEMU is stopped by a signal: even an idle guest
// costs an emulator a sixth of a processor. The first move of each is not
// measured.
//
// Plain QEMU is what one gets without anything around it: default settings but
// for the bandwidth, which neither limits, and TLS, which both use; a target started with -incoming, hosts joined by VXLAN and bridges that
// learn, and QEMU's own announcements after the move. Total time begins for
// Godwit with the request, for plain QEMU before the target is launched, and
// ends for both with the target's RESUME; blackout is from the source's STOP
// to the target's RESUME.
//
// # client
//
// Each case has a VM of its own, which moves there and back. Its client holds
// one TCP stream over all migrations of the case, and sends UDP packets anew
// for each: an emulated guest falls behind high rates while it is copied, and
// has to catch up. The cancelled hand-overs are cancelled by turns when the
// source has stopped and when the target lacks only the commit; the target's
// agent is paused meanwhile, so that no commit can be faster.
//
// # disk
//
// Three VMs move there and back, one after the other: without a disk, with a sparse
// one of 4 GiB of which 1 GiB is used, and with such a one to which the guest writes
// records meanwhile. Counted is what the source's host sends, but for the memory as
// QEMU counts it.
//
// # tcp
//
// The guests run iperf3's server. A flow of iperf3's client lasts 12 seconds, and four
// after its beginning the VM moves, by Godwit or, in an overlay of bridges that learn, by
// plain QEMU; of Godwit's VMs each flow is there without a migration, too. The VM in the
// provider network has an idle port in an overlay beside. Flows take all
// the processor time that they get, so on a machine of few processors the copy slows them
// for that, and a flow that nothing happens to has dips of its own: compare. One that
// --mbit limits shows more of what the network does. Throughput is what iperf3's client
// sees in tenths of a second; what it sends first fills the buffers of its socket. The
// intervals' times count from when its devices have carried the first 64 KiB, some
// milliseconds late.
//
// # volume
//
// The three servers serve one file at the same time, which is in the page cache
// as a whole, and fio's NBD engine uses them by turns: each case, in three
// rounds, of which each figure's median counts. All have their
// default settings and are reached by a Unix socket, without TLS. Depth is that of
// each connection. Then epochs follow each other on the volume while a client
// writes to it over TLS by the lease of each, 32 requests in flight: measured is
// the call that activates the next one, over mutual TLS.
package main
