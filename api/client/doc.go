// Package client calls a Godwit server from Go.
//
// A Client is safe for concurrent use and opens connections as calls need
// them; nothing is contacted by Dial itself. Calls and streams share one
// HTTP/2 connection, which is probed while it is idle, so that a server that
// vanished without a word ends the streams that wait for it. Close drops idle
// connections; streams end with their contexts.
//
// Every error of a call that is not the end of the caller's own context is or
// wraps a *fleet.Error, as described at wire.FromConnect.
package client
