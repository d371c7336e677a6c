// Package leases gives the hosts of VMs their rights to volumes, at the volume
// servers that the fleet knows (package volume has what a lease is).
//
// # Keys
//
// The key of an instance's leases follows from the fleet's secret, the VM's uid,
// the epoch and the migration by which the host gets that epoch; so every server
// that leads gives the same one, and nothing of it is stored. Volume servers get
// its hash with the grant. A host gets it with the right to run.
//
// # Grants and releases
//
// A grant can be repeated at any time, by any server. What has to be released is
// a record, stored in the commit that makes it superfluous; Run releases it until
// the volume server has said that it is done. An epoch that never began may be
// granted anew by the next migration: the release of an earlier grant names that
// by the hash of its key, and ends no other, however late it comes.
package leases
