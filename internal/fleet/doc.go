// Package fleet is the vocabulary of Godwit: typed ids, typed units, the
// nouns that every other package speaks of, and the one error type whose code
// survives the wire. It imports the standard library only and does nothing.
package fleet
