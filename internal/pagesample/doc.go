// Package pagesample measures from outside how another process changes a range of its
// memory. It knows nothing of what the process is for.
//
// # How
//
// A uniform random sample of the pages is looked at again and again; between two looks
// a page has changed if its content has another hash. For each page is kept between
// which looks it changed, so that any two looks are a window: a page counts once in it,
// however often it was written. Looks lie so that each of Periods fits several times
// (see schedule), and times are those at which looks were made, not those planned.
//
// What is written again with the same content has not changed, though a hypervisor
// counts it as dirty. A page that is written while it is read can count in two
// intervals that follow each other; within any window it is one.
//
// # What it does to the process
//
// It is not stopped, and nothing in it changes. It is only read with process_vm_readv,
// and only pages that /proc/PID/pagemap has as present: no page is allocated and none
// read from swap. The range has to be private anonymous memory, in which a page that is
// neither present nor swapped is zero. What it costs is the time of the thread that
// looks. For 2048 pages of a QEMU's and 15 looks in 4 s that was 64 to 77 ms, 2.5 µs for
// a page and look, on two processors that were busy emulating. Plan.CPUMax bounds it; the
// sample is made smaller after the first look if need be.
//
// # How exact
//
// If a share p of all pages changes within a window, the sample of n pages says p with a
// standard error of sqrt(p(1-p)/n): Point.SamplingError. What windows differ by on top of
// that is the process's own doing: Point.StdDev.
package pagesample
