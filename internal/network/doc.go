// Package network is the data plane of one host: the taps of its VMs, the gate
// at each tap, the tunnels that carry the frames of a migration, and the
// overlay networks that join the taps of different hosts, or the bridges of
// the operator that they join. It is the only package that speaks netlink and eBPF.
//
// # The kernel holds the state
//
// Nothing here has to keep running. Devices, filters, maps and address entries
// live in the kernel and stay as set when the agent dies; [Open] finds them
// again through the filters attached to the devices, without files on a bpf
// file system. What a call has set is in force when the call returns. But a tap
// that no process has open has no carrier, and its bridge gives it no frames.
//
// # Gates
//
// Every tap has a [Gate], in force in both directions before the tap is up or
// in a bridge. A tap without a gate passes nothing. [Tap.SetGate] replaces the
// whole gate in one step: each frame is judged by the old gate or by the new
// one. The epoch of a gate never goes back.
//
// # A hand-over
//
// The order that loses and doubles nothing, with the same tunnel id on both
// hosts:
//
//  1. Target: [Host.CreateTap] closed; the target QEMU starts on it.
//     Source and target: [Host.OpenTunnel] for their own tap.
//  2. Target, before the source stops: [Tap.Sacrifice], then [Tap.WaitEmpty],
//     then the gate becomes TunnelOnly.
//  3. Source, before its QEMU is told to stop: the gate becomes Leaving, then
//     WaitEmpty. QEMU takes one frame out of the tap after it has stopped, and
//     loses it with its process; this is how there is none to take. Where QEMU
//     stops by itself this step is left out, and that one frame is at risk.
//  4. Source, once its QEMU has stopped: the gate becomes Redirect to the
//     target, then [Tap.Drain]. Frames wait in the target's tap.
//  5. Target, once its QEMU has loaded everything: the gate becomes Arriving,
//     then [Tap.Claim]. From here on frames may also come directly.
//  6. Committed: the target's gate becomes Settling, its QEMU runs. When every
//     host knows the new address the source tap is removed, then
//     [Host.CloseTunnel] at the target, whose gate then becomes Pass.
//  7. Or aborted: first the source's gate becomes Pass again, then the target's
//     Returning, to the source, then Drain at the target.
//
// # Frames to all
//
// While the source forwards, a broadcast or multicast frame reaches the target twice:
// directly and by the tunnel. In Settling the first copy counts, and the next equal
// frame that comes the other way is taken for its second one. So none is lost when the
// source's host dies, or its tap is removed, and none of a host that does not send to
// this one yet. A copy whose other one has not come is remembered for one to two
// seconds. What is compared is what the sender has sent: not zeros at the end, nor the
// checksum of UDP, which may be left to a network card. A large datagram that has yet
// to be split counts by the tunnel only.
//
// # Provider networks
//
// A tap with [TapConfig.Bridge] is a port of the operator's bridge, which learns
// where addresses are, as the switches behind it do. That changes the hand-over in
// four places; the gates and the tunnel are the same.
//
//   - [Tap.Claim] is made where the guest starts, too, and holds: a bridge that hears
//     the guest at its uplink goes on to give its frames to the tap. So the source
//     forwards what comes for as long as the network has not learnt.
//   - The source announces the guest before it leaves ([Tap.Announce]): a frame for an
//     address that switches have forgotten would be flooded, and reach it by both hosts.
//   - In Settling the target does so again and again.
//   - The forwarding ends when nothing has come from outside for a while
//     ([Tap.LastRedirect]) and [Tap.Yield] has had the bridge learn the new way, for the
//     source's own guests.
//
// A tap must forward ([Tap.AwaitForwarding]) before frames can come directly.
//
// # Namespaces, threads, locks
//
// [Open] takes the network namespace of the calling thread; every later call
// acts in that namespace from whatever thread it is made. A process may hold
// several Hosts, one per namespace, but a namespace must have one Host only.
// All methods may be called concurrently. Calls that make or remove devices
// take the host's lock; SetGate, Drain and WaitEmpty only their tap's.
//
// # Closing
//
// [Host.Close] and [Tap.Close] release file descriptors and change nothing in
// the kernel. The caller closes each Tap before its Host. [Tap.Remove],
// [Host.RemoveNetwork] and [Host.Purge] take things away.
//
// # Trust
//
// As with VXLAN anywhere, whoever can send UDP to ports 4789 and 4790 of the
// underlay can inject frames: keep the underlay private.
package network

// The compiled programs are kept beside this file, so that only whoever
// changes them needs clang 14 or newer and libbpf's headers.
//
//go:generate sh -c "go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -no-global-types -target bpfel filter bpf/gate.c -- -O2 -g -Wall -Werror -I/usr/include/$(uname -m)-linux-gnu"
