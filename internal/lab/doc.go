// Package lab makes a small data centre out of one Linux machine: hosts,
// clients and the network between them as network namespaces, for the demo,
// the benchmarks and the tests. It needs root and nothing else.
//
//	               substrate (a bridge, MTU 9000)
//	        ┌──────────────┼──────────────┐
//	eth0 10.77.0.10   10.77.0.11     10.77.0.12     hosts: agents, QEMUs
//	        └─ DEVICE ═ eth0 of a client            plugged into a host
//
// Namespaces are named gw-LAB-MEMBER and lie in /run/netns, so that
// "ip netns exec" works on them. Every lab has the same addresses; any number
// of labs run side by side. The namespace that the lab is started from gets
// no interface, route or rule.
//
// The guests that are moved in it are those of package image, and package zoo names what
// they can be given to do.
//
// # What is removed, and when
//
// Close removes everything: it kills each process whose network namespace is
// one of the lab's, also those that outlived whoever started them, and then
// deletes the namespaces and the working folder. A process is killed by a
// pidfd that was opened before its namespace was looked at, so never another
// one that got its number. Nothing but a process's end counts as its end: what
// can't be looked at or killed is an error, and the lab stays.
//
// The owner of a lab holds a lock on /run/godwit-lab/NAME/lock as long as it
// lives. A lab whose lock is free has lost its owner; New and Sweep remove
// such labs in the way of Close, unless they were left on purpose with Keep.
//
// # Threads
//
// Do moves the calling goroutine's thread into a namespace and back; sockets
// made meanwhile stay there. Goroutines started by the function run outside.
// All methods may be called at the same time, except that nothing may be
// called after Close.
package lab
