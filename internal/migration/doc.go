// Package migration is the core of Godwit: what a migration is, and what it
// does next. It is pure. Step takes a migration and an event and gives the
// changed migration, whose Pending effects somebody else carries out; time
// comes in with the events. It imports the standard library, fleet and predict only.
//
// The contract with whoever runs it (the server):
//
//   - Save first, act after: an effect is dispatched only once the migration
//     that holds it in Pending is stored. A failed save means that nothing
//     happened.
//   - Effects may be dispatched any number of times, so a restart dispatches
//     all of Pending again. The agents carry each out once, by its sequence.
//   - Events may come late, twice or never. One that answers an effect names
//     its sequence; an answer to an effect that is not pending is late and
//     changes nothing.
//   - Owner says who may act for the VM. The save that moves a migration over
//     its commit changes the owner in the VM's record in the same transaction;
//     an abort is a transaction on the same two records, so one of them wins.
//   - A request for the VM, or for what the VM is on, asks Class what becomes of
//     it while the migration holds the VM's lock.
//   - When Timer is set and its time has come, TimerFired is due.
package migration
