// Package agent is the long-running program of one host. It carries out what
// the server decides: it starts and ends instances, copies them to other
// hosts, opens and closes gates, and sets the addresses of overlays.
//
// # Who may act
//
// The agent never decides who owns a VM. It opens the gate of an instance, and
// lets its vCPUs run, only in four cases: the server told it to start the
// instance, the server answered a Commit with the right to run, the server told
// the source to resume after an abort, or the source has the word of the target,
// when no server decides, that this has given up for good. The source writes that
// down before it runs on, and does so after a restart, too (docs/decisions/0008).
// Closing is always allowed: a source closes its own gate before it lets QEMU
// finish, without asking. A target that has given up keeps its instance, which never
// runs, until the frames that wait for it have been returned.
//
// # Servers
//
// The session goes to the server that leads, which any of them names. The
// commit is asked of any, in turn, until one answers. The agent keeps the
// newest point in the history of their store that it was told of, and says it
// in Hello: so a server finds out that its store is an old copy.
//
// # Machines
//
// A machine is one instance with its taps and its folder, by VM and epoch.
// Commands for one machine are carried out one after the other, in the order
// in which they came; those for different machines at the same time. Each is
// answered by a Report with its sequence. One that comes again is answered
// again, and not carried out again; one for a machine that is no more is
// answered as done, because leaving nothing behind is what it asked for.
//
// A command may come late, from a server that has led before or by a queue, and
// meet another instance at the same name and epoch. So it also names its VM's uid,
// and a machine of another VM is as none. An order of a migration, or the removal
// of its target, is for a machine that takes part in that migration and not in
// another; package pledge says in what it may be for one that takes part in none.
// What is for another one is answered, and does nothing.
//
// # Volumes
//
// A QEMU opens a volume by the epoch of its instance, and reads it. With the right to
// run comes the key with which the agent activates the leases, first of all: when that
// is answered, no older instance can write any more. A target that may have done it
// does not give up, since its source could not run on. An error of a disk stops a
// guest; if it has volumes, the agent lets it go on, until the volume server is back.
//
// # Hardware
//
// A card is plugged into an instance that runs, or out of it, by a command of the VM's life
// cycle, and only while the instance is its VM's only one. What was begun is written down
// with the command's sequence, and so is the answer; an older command does nothing. A card of
// which the guest has let go by itself is told in every session.
//
// # The same disks and machine
//
// Before a target makes anything, it has the source's agent show its instance: the
// images of disks, each with a byte of it locked, which the target must see, and what
// QEMU says of the machine, which the target's must be. A target that may run, but
// whose image another has locked, has not run and says that it waits; its source may
// have the VM back (docs/decisions/0023, 0024).
//
// # Measuring
//
// A server may have an instance measured that runs and that no migration has. Who asks
// while that goes on, or before it has cost less than its share of a processor since,
// gets the same answer. It ends when the guest stops or a copy begins. Links are probed
// from one agent to another; an agent takes the probes of two hosts at once, and refuses
// others (docs/decisions/0029).
//
// # Life and death
//
// QEMU outlives the agent, and so do taps, gates and tunnels. A tap whose QEMU was
// ended, since the VM has left, is kept open by the process that starts the agent
// again. An agent that starts first adopts what it finds in its folder; it ends
// nothing that it does not know. An instance whose monitor breaks the protocol, or is closed while the
// process runs, is adopted anew in the same way. As long as one can't be adopted,
// though its record can't be read, the servers are told that it runs, and it is
// tried again; no command for it is carried out but one that ends it, which needs
// only its process. That an instance has ended is said when its process has.
package agent
