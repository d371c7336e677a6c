// Package check judges what a simulated fleet did. It knows none of the code that
// was at work: it is told what guests wrote and sent, what owners were read and
// written, what became of each packet, and says what of that must not be.
package check
