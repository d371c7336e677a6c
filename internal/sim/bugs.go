package sim

// Bug is a mistake that can be put in, to see that it is found.
type Bug string

// The bugs.
const (
	NoBug         Bug = ""
	Unconditional Bug = "unconditional-commit"
	Unfettered    Bug = "run-without-commit"
	Unforgiving   Bug = "run-after-refusal"
	OpenGate      Bug = "gate-left-open"
	Unasked       Bug = "run-on-unasked"
	Impatient     Bug = "lost-reply-is-consent"
	Unwritten     Bug = "refusal-not-written"
	Keeping       Bug = "frames-not-returned"
	Hasty         Bug = "forwarding-ends-early"
	Careless      Bug = "last-pages-not-sent"
	Killjoy       Bug = "end-what-is-found"
	Untold        Bug = "lost-host-awaited"
	Unwaiting     Bug = "commit-unheld-at-once"
	Unsparing     Bug = "leftover-removed-unasked"
	Tidying       Bug = "leftover-removed-early"
)

// BugNote is a bug with what it is.
type BugNote struct {
	Bug  Bug    `json:"bug"`
	What string `json:"what"`
}

// Bugs lists them.
func Bugs() []BugNote {
	return []BugNote{
		{Unconditional, "a save does not heed the version of the migration's record"},
		{Unfettered, "a target runs when it has loaded, without the commit"},
		{Unforgiving, "a target that has given up goes on, and runs when it is told to"},
		{OpenGate, "the source's gate stays open, and its tap is not drained"},
		{Unasked, "a source runs on by itself when no server decides"},
		{Impatient, "a source takes a question without an answer for a yes"},
		{Unwritten, "a target gives up without writing it down or ending its instance"},
		{Keeping, "a target that is released returns no packets"},
		{Hasty, "the forwarding ends before every host knows the new address"},
		{Careless, "what the guest writes in the last pass is not sent"},
		{Killjoy, "an agent that starts ends the instances that it finds"},
		{Untold, "migrations are not told that a host of theirs is lost"},
		{Unsparing, "what was once said to have ended is removed as a leftover, whatever it is by then"},
		{Tidying, "what an instance has left is removed while its migration still needs it"},
		{Unwaiting, "the commit does not wait for a source whose QEMU may yet run the guest on by itself"},
	}
}

func (w *world) bug(b Bug) bool { return w.options.Bug == b }
