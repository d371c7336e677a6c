// Package cli is the command line: it reads flags, calls the server through
// api/client and prints what it answers, for people or, with --json, for
// programs. It decides nothing about VMs.
//
// Results go to standard output; errors, hints and everything said only to a
// person go to standard error. With --json a command prints exactly one JSON
// value, or one a line if it watches; its objects are those of the API as
// protobuf's JSON mapping writes them, so 64-bit numbers are strings.
//
// Each command is built by a function of type constructor and listed in
// root.go; it gets the App, which holds the streams, the environment and the
// global flags, and nothing is read from anywhere else. Main closes what
// commands open.
package cli
