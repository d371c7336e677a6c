// Package sim runs whole fleets in virtual time, to find what goes wrong when many
// things do at once. One seed is one fleet; a seed always does the same.
//
// # What is real
//
// The core, and of each of three servers the reconciler (package reconcile) and the
// life cycle of VMs (package lifecycle), with records as JSON in a simulated store. What agents may do, and for whom a
// command is, is decided by package pledge, and what they were told is kept by its
// Log, as in the real agent.
//
// # What is modelled
//
// The store: linearizable, one commit after the other, requests and answers that
// get lost, commits that happen after nobody waits for them any more, a lease for
// whoever leads, watches. Sessions with their heartbeats. The order in which an
// agent acts (agent*.go follows the real one step by step), hosts with taps, gates
// and tunnels, QEMUs with their copies, guests that number the blocks they write,
// clients that number their packets. The address map, what a client's request to start
// a VM does, and a server's view of the records are models of what the server does, and
// simpler.
//
// Clients stop VMs now and then, and start them again on any host.
//
// In every other fleet nobody can hold QEMU at the end of a copy: it may stop the guest
// by itself, and then runs it on if the copy fails. In half of the fleets an operator
// declares hosts lost that are off, by the steps of the server; they stay off, or come
// back later.
//
// Clocks are harsher than real ones: a jump changes how much time a server finds
// between two readings, where the real one has a monotonic clock.
//
// Not simulated are the agent's own line to the commit, the queue by which a client
// follows a migration, and the bounds of a session's queues.
//
// # Time and chance
//
// Everything happens in one goroutine: an event of the queue, or a task, which is a
// coroutine that the loop resumes. Whatever may take time is a wait of a task, also
// inside of the reconciler, whose locks and timers are the loop's. So a process can
// crash or hang between any two steps, and two steps of one server can meet. There
// is one source of chance, the seed's, and nothing depends on the order of a map.
//
// # Judgement
//
// Package check is told what was done, and says what must not be. What becomes of
// a packet is excused only for causes that [vm.excuses] and the callers of lose
// name: something died, or it is a limit that docs/guarantees.md names.
package sim
