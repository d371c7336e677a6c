// Command bench measures hand-overs: Godwit against plain QEMU, in pairs, on
// the same machine in one go. Both move the same guest under the same traffic,
// seen by the same probe, between two hosts of a lab each.
//
// Plain QEMU is what one gets without anything around it: default settings, no
// TLS, a target started with -incoming, hosts joined by VXLAN and bridges that
// learn, and QEMU's own announcements after the move. Total time begins for
// Godwit with the request, for plain QEMU before the target is launched, and
// ends for both with the target's RESUME; blackout is from the source's STOP
// to the target's RESUME. Traffic flows only to the VM that is being measured.
//
// It prints a table and writes every run to out/bench-handover.json.
package main
