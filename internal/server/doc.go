// Package server is the control plane: the API, the sessions with the agents,
// the placement of VMs, networks and the address map. What carries migrations on
// (package reconcile) and what keeps the life of VMs (package lifecycle) run in it.
//
// # Truth and order
//
// All truth is in the store; a server can die at any instant and another one
// takes up what is written there. Every change is one commit conditioned on
// the versions it was decided on. Save first, act after: a host is told
// something only once the record that says so is stored.
//
// The mirror follows the store by one watch and holds the records that must be
// at hand (VMs, hosts, networks, migrations). What it says may be some
// milliseconds old, and older while the watch is silent; whatever decides reads
// the store itself. A session begins when the mirror has all that was stored
// before: it waits for what the session has stored of the host.
//
// # Requests
//
// A request for a VM passes the lock that a migration may have on it; what
// becomes of it the core says (Migration.Class). Where that
// may cancel the migration, whatever else can refuse the request comes before,
// so that none is cancelled in vain. A mutation may name the version that it
// means; it is compared with the one on which the commit is conditioned. A
// creation may have an id: once then keeps its answer in the commit that
// creates, and gives it when the request comes again.
//
// # Terms
//
// Of servers that share a store one leads, for a term. What needs one place
// exists in a term only: sessions, the life cycle, the address map, and the
// carrying on of migrations. Every server reads records, and decides commits and
// aborts; the leader takes up what another one has decided as its mirror hears
// of it. All other calls go on to the leader.
//
// In a term on a store that was restored from a backup nothing is done: sessions
// are refused once the host has said what it has, until an operator accepts the
// store.
//
// # Sessions
//
// An agent holds one stream to the server that leads. The newest session of an agent is the
// session: it first ends the older one and waits until its last report was
// handled, so the reports of a host are handled one after the other and in
// order, also over a reconnect. Another agent with the host's certificate waits
// until that session has ended, and is refused if it lives. Who is speaking is
// what the certificate says, never what a message says. A message that cannot be
// read ends the session, and so does saying often what a host must not. Commands are queued per session, at most
// sessionQueue of them, and are lost with it; whoever sent them sends them
// again when the host connects, because an agent executes each once.
//
// # Volumes
//
// A command that makes a QEMU connect to volumes is sent when their leases are
// granted. Nobody waits for that: a start is told when its VM is looked at again, and
// a command of a migration by the goroutine that grants. What has to be released is
// stored with what makes it superfluous; package leases carries it out in a term.
//
// # Addresses and forwarding
//
// The source of a migration forwards until every host that takes part in a
// network has acknowledged the new address. A host without a session is waited
// for, since its kernel sends on, for at most goneAfter since its session, or
// the start of this server; the migration's record then names it. Whatever is
// missing, the forwarding ends with the migration's time to settle.
//
// # Keeping and exporting
//
// A migration's record is exported when it is final, and again when it is closed:
// no effect is pending, and it does not lock its VM. Only closed records are
// deleted. Both is done by one goroutine (keepRoom) of the server that leads, and
// with an export file each is in it, synced, before the store hears of that or
// deletes it: at least once. In a term on a restored store nothing is.
//
// # Locks
//
// hub.mu, mirror.mu, addressPusher.mu, leader.mu and recovery.mu
// are never held while another lock of the package is taken, except that
// addressPusher.mu is held while the mirror is read and the hub is written to.
// None is held over a call to the store or to a host.
package server
