// Command faults runs migrations in a lab on this machine, does one thing to
// one part of the fleet at one moment of each, and checks what became of the
// VM, its packets and its disks, one of each kind:
//
//	fault    SIGKILL, SIGSTOP for 5 s, a cut one way or both ways for 5 s, restart
//	victim   the QEMUs, the agents, servers, etcd, the volume server, and the links
//	         between them
//	state    Preparing, Copying, Switching before and after the commit, Settling
//
// Every cell of this matrix is either run or says why it is not. "faults --list"
// shows them, --fault, --victim and --state select some. What was found goes to
// out/faults.json after each cell; cells that are there already are not run
// again unless --again is given. The program fails if anything was violated.
//
// # Faults
//
// A program that gets SIGKILL stays dead for 10 s, longer than the deadline of
// a switch, and is then started again as its supervisor would; restart means at
// once, with all its processes. SIGKILL and SIGSTOP of an agent are for the
// process that does its work: what follows is its monitor's own doing. A QEMU
// that gets SIGKILL stays dead: with it the guest's memory is gone.
// A cut is made in the kernel of the host that shall not receive, and drops
// silently. What is cut for each victim is in cuts.go.
//
// # How a state is hit
//
// Migrations are watched as any client may watch them, and the fault comes as
// soon as the record shows the state. Two states last for milliseconds only, and
// so does the source's QEMU in the last, so they are held, by what a real network
// or host may do as well:
//
//   - before the commit: the target's agent is stopped by a signal since the end
//     of the copy, so that it cannot ask for the commit until the fault has come
//   - after the commit: from the stop of the source on, what the server sends to
//     the target's host is cut, so that the answer comes only after the fault
//   - a source's QEMU in Settling: from its stop on, what the servers send to its
//     host is cut, so that it is ended only after the fault
//
// Afterwards the record's story must show that the fault fell into the state;
// if not, the cell is run again, and after three such runs it says so.
//
// # What is measured, and checked
//
// The pause is the longest gap in the client's stream of echoes, which is the
// guest's pause and what the network adds. The longest time without a new record
// on one of the guest's disks stands beside it, and the blackout of the record.
//
// The checks use nothing of what they check. The wire in front of the client is
// captured: it shows from which host the guest's frames came. The guest numbers
// its replies and its disks' records and draws a nonce for each (see
// witness.Nonces), so that one number with two nonces shows that it ran twice.
// Its replies also name the last record that its first disk has acknowledged, and at
// the end it says what the others have.
//
// A guest whose volume server is away may stand still for so long, and for as long as
// it then takes until it is let go on.
//
// # Soak
//
// With --soak N no cells are run: one VM migrates N times, back and forth, while
// faults chosen at random follow each other, of those that lose no packet and no
// VM by themselves. At its end every packet and every record must be there, the
// stream whole, and every host must list the processes, devices and files that it
// listed before. The result goes to out/soak.json.
package main
