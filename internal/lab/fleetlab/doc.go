// Package fleetlab runs a whole fleet on one machine, in a lab: the server and
// an agent per host as processes of the real program, overlay networks, a
// client, and VMs that boot the lab's guest.
//
//	control      h1          h2          h3
//	server       agent       agent       agent ═ client eth0 (network blue)
//	(etcd)       QEMU        QEMU              ═        eth1 (network green)
//
// The store is part of the server, or with Config.Etcd an etcd of so many
// members beside it, with TLS and certificates of its own. With Config.Servers
// there are replicas of the server: the second and its member of etcd run on
// control2, and so on.
//
// Start returns when every host is up. Each of the processes can be killed and
// started again; their output goes to files in the lab's working folder, and
// VMs outlive their agents as they do elsewhere. Close removes everything;
// after Keep it leaves everything as it stands.
//
// Methods may be called concurrently, except that nothing may be called
// after Close.
package fleetlab
