// Package demo shows what Godwit does on one machine: it starts a fleet in a
// lab, boots a VM, has a client talk to it all the time, and migrates it to and
// fro. Of each migration it tells what the server measured, and what the client
// saw of it.
//
// Run makes everything and removes it before it returns, also when its context
// ends, unless Config.Keep is set. What it says while it works goes to
// Config.Progress; the Report is for whoever wants the figures. Traffic and
// Spread serve the benchmarks too, so that all measure alike.
package demo
