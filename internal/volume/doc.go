// Package volume is the block server for network volumes: a folder of volumes,
// the leases that say who may use each, and a server of the NBD protocol
// (NetworkBlockDevice/nbd, doc/proto.md: fixed newstyle, TLS, structured
// replies, base:allocation) that keeps to them.
//
// # Leases
//
// A host's QEMU names the epoch of its instance in the export's name,
// VOLUME@EPOCH; its host is what its certificate says. At each epoch it has no
// lease, the standby one, which connects and reads, or the active one, which
// writes. Of one volume at most one epoch is active, and an epoch that was
// followed by another never is again. Operators name no epoch and use a volume
// while no host holds it.
//
//	Grant     e+1 stands by for a host, with the hash of a key
//	Activate  with the key: e ends, e+1 is active
//	Release   an epoch's lease ends, of either kind; or only that of one key
//
// A connection keeps its place when its lease becomes active: nothing has to
// be opened in a migration's blackout. What it was refused before it may do
// from then on.
//
// # Order
//
// Each WRITE, WRITE_ZEROES and TRIM looks at the lease and changes bytes under
// one read lock, long ones piece by piece. A change of the lease takes the
// write lock, so it waits for what runs; then it is saved, counts, and the
// connections without a right are cut. So when Activate returns, no write of an
// older epoch runs or will ever be done, and after a crash the same holds. FLUSH
// looks at the lease under the lock and waits for the disk outside.
//
// # Durability
//
// What was written is in the kernel's page cache, which all connections share;
// FLUSH and FUA are fdatasync of the volume. So the death of this process loses
// nothing, and the machine's only what was not flushed. One fdatasync of a volume
// runs at a time, and after one that failed every later one fails, until the
// volume is opened anew. A lease that is read at the start is saved again before
// it counts.
//
// # Threads
//
// While a connection is idle one goroutine waits in read(2) for its next request,
// on a thread of its own. It also does what is short, or in the kernel's cache:
// for anything that may wait for the disk it first starts another reader. Closing
// such a connection shuts it down, which is what wakes the thread.
//
// # Files
//
//	DIR/lock                   held by the process that serves the folder
//	DIR/volumes/NAME/data      the bytes, sparse; locked as a whole
//	DIR/volumes/NAME/volume.json
//	DIR/volumes/NAME/lease     two slots, written by turns, in place
//
// A volume that is made or deleted is a folder with another name until, or
// from, one rename.
//
// # Locks
//
// Store.making before Store.mu before volume.gate before volume.users. Nothing
// is locked within backing.flushing, nor it within volume.gate: it waits for the
// disk.
package volume
