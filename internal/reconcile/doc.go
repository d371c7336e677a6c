// Package reconcile carries migrations on: the core decides on what is heard of
// one, the record is saved, and what the core wants done is told to the hosts, in
// this order. A server that dies between any two of these is no harm: the next
// one loads the record, and tells the hosts again what they have not answered.
//
// Any number of reconcilers may share the records. Each decides commits and
// aborts when it is asked; one at a time is to carry on (Begin, or Run), but
// nothing depends on that it is only one: every save is conditioned on the
// version that it was decided on.
//
// A reconciler knows neither the transport nor the machine: hosts, addresses,
// records and the clock are given to it. Run, Follow and ServeCommit block; whatever else
// is exported takes no longer than the store.
package reconcile
