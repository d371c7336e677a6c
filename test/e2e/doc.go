// Package e2e tests Godwit as a whole: the real program on real QEMU, with a
// real guest and a client's traffic, in a lab on this machine. Its tests need
// root, QEMU and the lab's guest image, and say so where these are missing.
//
// One fleet serves nearly all of them, each with a VM of its own; another has
// its store in an external etcd, and loses it. What is asserted are counts and
// states, which hold on any machine; durations are for test/bench.
package e2e
