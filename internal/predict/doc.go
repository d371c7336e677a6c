// Package predict foretells migrations: whether one ends within its policy, and
// what it costs in time, blackout and bytes. It is pure: what was measured goes
// in, a forecast comes out, and the same measurements always give the same.
//
// The model is that of iterated pre-copy. D(t) is how much of its memory a guest
// changes within t, counted once however often it changes; it saturates. B is the
// bandwidth that is left. A pass that takes t leaves D(t) for the next, which takes
// D(t)/B: the passes shrink to the largest fixed point of that below the first, and
// the copy ends if that point is within the blackout allowed. (Measured at several
// periods and iterated so: A. Gudkov, "migration: predict migration time", qemu-devel
// 2023. That a constant rate in place of the curve goes far wrong: Nathan et al.,
// SoCC 2015.)
//
// Neither D nor B is known exactly. Both are taken as lognormal, and the model is
// run on a grid of their quantiles: the weight of the runs that end is the
// probability, and the quantiles of what they take the intervals. What was
// foretold before and came out otherwise corrects both (see Calibration).
package predict
