// Package image builds and finds what a lab guest boots: Debian's cloud
// kernel as it comes in its package, and an initramfs that holds the guest's
// init and the few kernel modules it needs.
//
// Everything lies in one cache folder, normally .cache in the source tree:
//
//	kernel/        the extracted package (put there by scripts/setup)
//	guest/vmlinuz  the kernel
//	guest/initrd   the initramfs
//	zoo/root       unpacked packages, for BuildFrom (put there by scripts/setup zoo)
//
// Build is idempotent and replaces files by renaming, so guests that are being
// started meanwhile see a whole image, old or new. Two Builds at once are
// harmless.
package image
