// Package qmptest is a fake QEMU for tests: it speaks the QEMU Machine Protocol
// over a unix socket, so that the real client and its codec are under test.
//
// Like QEMU it executes in-band commands one after another in their order,
// out-of-band ones at once, offers its greeting to one connection at a time
// and refuses commands before qmp_capabilities. A command without a handler is
// answered with CommandNotFound. A Server is made by one test and ends with it.
package qmptest
