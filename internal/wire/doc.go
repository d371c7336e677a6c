// Package wire turns the nouns and errors of package fleet into the messages
// of the API and back.
//
// Encode functions cannot fail: numbers that a message's field cannot hold
// become the nearest that it can, so that the receiver's own checks refuse
// them. Decode functions check only what a type demands (addresses, prefixes,
// messages that must be there), report everything that is wrong at once as a
// *fleet.Error with code Invalid, and give field paths relative to the message
// decoded. What a spec means is checked by whoever decides on it.
//
// Errors cross by ErrorDetail messages, one for each *fleet.Error in the
// chain, outermost first; the interceptors do it for unary calls and streams.
// Nothing here holds state or starts anything.
package wire
