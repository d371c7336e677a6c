// Package volumeserver is the long-running program around internal/volume:
// godwit volume serve. It listens in four places:
//
//	TCP 10809     NBD over TLS, for hosts' QEMUs and administrators
//	TCP 7445      VolumeService over mutual TLS
//	nbd.sock      NBD without TLS; whoever opens it is an operator
//	volume.sock   VolumeService; whoever opens it may do everything
//
// Who a client is, its certificate says: a host's QEMU uses a volume by the
// lease of its host, an administrator one that no host holds, and nobody else
// anything.
package volumeserver
