// Package witness is what a guest of the lab says about itself, and the
// echoes by which a client questions it: packets, disk records, reports and
// the kernel command line that tells the guest what to do. The guest's init
// and the client's probe both speak it, so the two cannot disagree.
//
// # Ports
//
// A guest serves every address of every one of its ports:
//
//	UDP 7000  echo: the packet comes back with the guest's counter in it
//	TCP 7001  echo: the bytes come back
//	TCP 7002  control: one JSON request a line, one JSON answer a line
//
// The guest's counter rises by one with every packet it handles and lives in
// guest memory only. A client that sees one value twice has seen the guest
// run twice from one state: two instances, or a rollback. Every reply also
// names the last disk record that was acknowledged, so that a client knows
// which must be on the disk, whatever becomes of the guest.
//
// # Load
//
// A Load is the work that a guest does beside: on its memory, in a Redis, or with a
// compiler. It is given on the kernel's command line or by OpLoad, and replaces the one
// before when all is ready for it: the set is filled and the server runs. Memory that a
// load once had stays the guest's until a load of another kind comes, so that a change
// writes no more than the new load does. A load that can't go on is ended, and the
// report says why. Package load has when which page is written, and package zoo the
// loads that migrations are tried with.
//
// # Ownership
//
// ServeUDP, ServeTCP and ServeControl take over what they are given and close
// it before they return; they return when their context ends. Ledger is safe
// for concurrent use; Window is not.
package witness
