// Package localdisk keeps the copies of VMs' local disks that a host has.
//
// A copy is a folder with the images of all local disks of one VM, and a mark:
// DIR/UID/NUMBER/copy.json, where NUMBER is the epoch for which it was made. The mark
// names the epoch of the instance for which the copy is the good one, and its state:
//
//   - filling: a migration writes it, for a target that has not run;
//   - good: an instance of that epoch has it, or had it last;
//   - old: its VM has run on elsewhere.
//
// A copy is made good, or old, by whoever knows that the VM runs there, or elsewhere.
// Which host has a VM's data only the VM's record tells: Use gives a start the copy
// that the record speaks of, and no other, so that a VM never goes on from old data.
// An old copy is removed after a time; one that became old without a word that
// the VM runs elsewhere is not.
//
// A Store may be used by any number of goroutines, a copy by one at a time. What has
// been marked holds even if the host loses its power. Reports of errors name the
// folder.
package localdisk
