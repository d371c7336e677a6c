// Package imagelock tells by locks of the kernel what becomes of an image that two
// hosts open by the same path: whether it is the same file, and whether a lock that
// one host takes is seen on the other. QEMU keeps two instances from writing an image
// at the same time by such locks, and by nothing else.
//
// The locks belong to a descriptor (fcntl(2), open file description locks): they end
// when it is closed, with the process at the latest, and do not touch those that
// others have. They are advisory, and cost the file nothing. QEMU uses the bytes 100
// to 163 for what an instance does with an image, and 200 to 263 for what it lets no
// other do; the byte by which a file is shown is far beyond any image.
//
// What is done with a file on a server that has gone away may not return. So callers
// give each call a goroutine that may be left behind.
package imagelock
