// Package check judges what a simulated fleet did. It knows none of the code that
// was at work: it is told what guests wrote and sent, what owners were read and
// written, what became of each packet, and says what of that must not be.
//
// A guest's memory is the number of the last block that it wrote. What is checked is
// that a migration hands it over: a guest that boots reads its number from here, so
// that nothing is learned of a volume's own contents.
package check
