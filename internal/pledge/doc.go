// Package pledge is what an agent promises for an instance that takes part in a
// migration, and what follows from that: for whom a command is, whether it may
// be carried out, what is answered for an instance that is not there, and who
// may run when no server decides. Everything here is a function of what the
// agent has written down and what it sees; the agent does what comes out, and
// so does that of the simulator.
//
// # Written down before it holds
//
// A role is written down before anything is done that rests on it: a target
// that gives up writes that before it says so, and a source that runs on before
// its gate opens. So an agent that starts again keeps what an earlier one has
// promised. The gates, which the kernel keeps, tell the one thing that is not
// written before it happens: whether a target may have run.
package pledge
