// Package qemu runs instances: one QEMU process each, driven by its monitor
// alone. It decides nothing: who may run vCPUs, and when, is the agent's
// business. It only refuses what would break an instance for certain.
//
// # Processes
//
// An instance is a session of its own and outlives the program that started
// it. Everything of it is in its run directory: the monitor's socket, the log,
// the console, and the record by which Adopt finds it again. Start and Adopt
// give an Instance; its owner calls Close to let go of it, after which the
// process runs on, and Kill to end it. At most one Instance, in one program,
// can hold a process: QEMU serves one monitor connection at a time. One that does
// not answer is ended by its process alone, with the function Kill.
//
// Every instance starts with its vCPUs stopped (-S), an incoming one also with
// -incoming defer. Cont is what runs it.
//
// The caller keeps the tap descriptors that it passes. The child gets
// duplicates; nothing here changes the file description's flags, which the
// caller, QEMU and all duplicates share and which must stay non-blocking.
//
// Probe tells what the installed QEMU can do, and Abilities what an instance's
// can, which stays that of its start.
//
// # Migration
//
// The target calls Listen, the source SendTo; then the source follows Events
// and Progress. With pause-before-switchover, which is always on, the source
// stops in status pre-switchover until ContinueSwitch. QEMU is no referee of
// who owns the VM: its source runs on by itself after a failed or cancelled
// migration, unless the VM had been stopped by Stop before. A target whose
// migration failed cannot be used again and must be killed; its death in
// pre-switchover goes unnoticed by the source until ContinueSwitch.
//
// Stop and QEMU's own stop at the end of a copy can meet. Then Stop succeeds
// though QEMU was first, and a cancelled source runs on; or pre-switchover is
// reported before Stopped, because QEMU's migration thread sees the new state
// while the vCPUs are still coming to rest. ContinueSwitch therefore has to
// wait for both: for Stop to return or Stopped, and for pre-switchover.
//
// A source that sends its devices holds QEMU's main loop, and with it the monitor
// but for what is out of band, until the target's end has taken all: for as long
// as a link is cut, and TCP's next try after it. CancelMigration shuts the
// connections then.
//
// TLS: both sides read ca-cert.pem and {server,client}-{cert,key}.pem from
// a folder of credentials. GnuTLS demands of the authority CA:TRUE with
// keyCertSign, of the others digitalSignature and keyEncipherment. The source
// verifies the target by its host name, the target the source by its subject.
// The target judges after the source has finished its part of the handshake
// (TLS 1.3), so that the source of a small guest may come to pre-switchover
// before it learns that it was refused; it never comes to completed.
//
// # Volumes
//
// A disk that is a volume is an NBD node below the disk's own. MoveVolumes puts
// another one there, while the guest runs if the server of the older one answers;
// else only in an instance that has sent everything: it flushes the older one.
//
// # Local disks
//
// An image that is the instance's own goes with it: the target exports its empty one
// (Export, after Listen), the source mirrors its own to that (StartMirrors), and the
// memory is to follow when all are Ready and, after SyncMirrors, Synced. Once the
// guest has stopped, FinishMirrors tells whether the target has all of it, and so does
// StopMirrored, which stops the guest; it must be done before ContinueSwitch, which
// makes the images inactive, and EndExports before the target runs. A mirror that is in
// step stays then, and an instance that is to go on needs AbandonMirrors first. In step, a
// guest's writes wait for the target, and if that hangs, so does what waits for them,
// QEMU's monitor included: CutMirrors ends it. While a disk is mirrored, QEMU ignores the
// guest's discards (in all versions that were tried).
//
// # Cards
//
// Each disk and network card has a PCI slot, by which all that belongs to it is named. PlugDisk
// and PlugNIC write down what the instance is to have before it has it, and Unplug and DropCard
// that it has not when nothing of it is left; Gone tells what is written down and not there. A
// guest may let go of a card at any time after Unplug has asked for it: see CardGone.
//
// # The machine
//
// Describe gives what the guest sees of the machine, to be compared between a source
// and its target.
//
// All methods of an Instance may be called by any number of goroutines, those
// that begin or end a migration by one at a time.
package qemu
