// Package zoo names the guests that migrations and their forecasts are tried with.
//
// A workload is a load on the lab's guest, which a witness.Request can give to any
// guest that runs, too. Its rates are multiples of the rate of the migration's link:
//
//	idle                    96 MiB in use, nothing written
//	sweep-SET-at-X          page after page of a set of SET MiB, at X times the link's rate
//	bursts-SET              sweeps at three times the link's rate, one second of four
//	steady-SET-at-X         any page of the set
//	steady-SET-flat-out     as fast as the guest can
//	hot-SET-at-X            nine writes of ten to a tenth of the set
//	zipf-EXPONENT-SET-at-X  page n as often as n^-EXPONENT
//	zeros-PERCENT-SET-at-X  so much of each page is zeros; of 100% all of it
//	turns-busy              steady at 0.3, and 20 s after its begin at 1.5; turns-calm is
//	                        the reverse, and turns-idle ends
//	grows                   steady at 0.8, after 20 s over 96 MiB, not 32
//	redis-SET-at-X          values of 4 KiB set in a Redis that saves nothing; also with
//	                        keys by Zipf, and flat out
//	compile                 tcc compiles one source after the other
//
// The sweeps and the bursts, on a link of 200 Mbit/s, are the guests that other
// programs were measured with. What a workload has done, and when it changed, is in the
// guest's witness.Report.
//
// Redis and tcc are Debian's; an image that has them is made by Build, out of what
// scripts/setup zoo fetches.
package zoo
