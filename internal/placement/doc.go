// Package placement decides which host takes a VM, and says why.
//
// It is pure: a snapshot of the fleet goes in, a decision comes out, and the
// same snapshot always gives the same decision. A snapshot may be out of date
// by the time its decision is used; whoever uses it must take the host's
// capacity with a compare-and-swap on the host's ledger and, when that fails,
// place again.
package placement
