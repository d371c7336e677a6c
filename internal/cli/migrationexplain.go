package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/explain"
	"godwit.dev/godwit/internal/wire"
)

func newMigrationExplain(app *App) *cobra.Command {
	return app.callCommand("explain MIGRATION", "Tell the whole story of one migration in order",
		`Explain tells where the VM is and what is to be done; why the target was chosen
and the other hosts were not; which limits held and where each came from; then
everything that happened on both hosts and the server, on one time axis, with
what each event led to; and what was measured.

The axis is the server's clock. What a host noted is moved on it, if it must be,
by as little as puts nothing before what led to it; how far is said below.

With --json it is one object: the story, and the record that it was made of.`,
		"  godwit migration explain 7f3k9\n  godwit migration explain 7f3k9 --json | jq -r '.story.timeline[].what'", migrationIDs,
		func(ctx context.Context, c *client.Client, id string) error {
			response, err := c.Migration.Get(ctx, &godwitv1.GetMigrationRequest{Id: id})
			if err != nil {
				return named("explain", "migration "+id, err)
			}
			m := response.GetMigration()
			story := explain.Of(m)
			if app.json {
				return app.printStory(m, story)
			}
			return app.printText(func(w io.Writer) { app.tellStory(w, m, story) })
		})
}

func (a *App) printStory(m *godwitv1.Migration, story explain.Story) error {
	record, err := wire.CompactJSON(m)
	if err != nil {
		return err
	}
	return a.printJSON(struct {
		Story     explain.Story   `json:"story"`
		Migration json.RawMessage `json:"migration"`
	}{story, record})
}

// tellStory prints a story for people.
func (a *App) tellStory(w io.Writer, m *godwitv1.Migration, story explain.Story) {
	s := sheet{w, a.style()}
	p := prose{w, a.textWidth()}
	fmt.Fprintf(w, "migration %s of vm %s from %s to %s: %s\n", m.GetId(), m.GetVm(), m.GetSource(), m.GetTarget(), s.style.state(m.GetState()))
	for _, sentence := range story.Summary {
		p.write("", sentence)
	}
	tellOpen(p, s, story)
	s.heading("What was decided")
	p.write(key("Requested"), a.moment(m.GetCreated()))
	tellDecisions(p, story.Decisions)
	s.heading("What happened")
	tellTimeline(p, s, m, story.Timeline)
	tellShifts(p, story.Shifts)
	tellClocks(p, m, story)
	if m.GetOutcome() != nil {
		s.heading("What was measured")
		a.outcome(s, m.GetOutcome())
	}
}

// tellOpen says what is to be done, before all that was.
func tellOpen(p prose, s sheet, story explain.Story) {
	if len(story.Remedies) > 0 {
		s.heading("What helps")
		for _, remedy := range story.Remedies { // whole, to be copied
			fmt.Fprintln(p.w, "  "+shellLine(remedy))
		}
	}
	if len(story.Pending) > 0 {
		s.heading("What hosts still have to do")
		for _, order := range story.Pending {
			p.write("  ", order)
		}
	}
}

// tellDecisions names what several facts in turn are about only once.
func tellDecisions(p prose, facts []explain.Fact) {
	last := ""
	for _, fact := range facts {
		shown := fact.What
		if shown == last {
			shown = ""
		}
		last = fact.What
		p.write(key(shown), fact.Text)
	}
}

func key(text string) string { return fmt.Sprintf("%-*s", keyWidth, text) }

// tellTimeline marks the times that were noted by a host's clock.
func tellTimeline(p prose, s sheet, m *godwitv1.Migration, lines []explain.Line) {
	const at, who = "AT", "WHO"
	wideAt, wideWho := len(at), len(who)
	offsets := make([]string, len(lines))
	hosts := false
	for i, line := range lines {
		offsets[i] = explain.Offset(line.At.Sub(m.GetCreated().AsTime()))
		if line.Clock != explain.Server {
			offsets[i] += "*"
			hosts = true
		}
		wideAt, wideWho = max(wideAt, len(offsets[i])), max(wideWho, utf8.RuneCountInString(line.Who))
	}
	columns := func(at, who string) string { return fmt.Sprintf("%-*s  %-*s  ", wideAt, at, wideWho, who) }
	fmt.Fprintln(p.w, s.style.bold(columns(at, who)+"WHAT"))
	for i, line := range lines {
		p.write(columns(offsets[i], line.Who), line.What)
		for _, led := range line.Led {
			p.write(columns("", "")+"→ ", led)
		}
	}
	if hosts {
		p.write("", "* noted by that host; the other times are the server's, when it heard of it.")
	}
}

// tellShifts says by how much the times above are not those that were noted.
func tellShifts(p prose, shifts []explain.Shift) {
	for _, one := range shifts {
		by, way := millis(math.Abs(one.AheadMs)), "earlier"
		if one.AheadMs < 0 {
			way = "later"
		}
		if one.Clock == explain.Server {
			p.write("", fmt.Sprintf("The servers' clocks disagree: some of their times are shown up to %s %s, so that they are in the order of the record.", by, way))
			continue
		}
		p.write("", fmt.Sprintf("The times of %s are shown %s %s than by its clock, so that nothing comes before what led to it.", one.Clock, by, way))
	}
}

// tellClocks says what the hosts' own times prove of their clocks.
func tellClocks(p prose, m *godwitv1.Migration, story explain.Story) {
	for _, d := range story.Clocks {
		text := fmt.Sprintf("The clocks disagree: that of %s is at least %s ahead of that of %s. By their own times %s after %s.",
			clockOf(d.Ahead), millis(d.AtLeastMs), clockOf(d.Behind), d.First, d.Then)
		corrected := m.GetOutcome().GetClocksApartMs() != 0
		if blackout := []string{d.Ahead, d.Behind}; !corrected && slices.Equal(blackout, []string{m.GetSource(), m.GetTarget()}) {
			text += " So the blackout was longer than measured, by that at least."
		}
		p.write("", text)
	}
}

func clockOf(name string) string {
	if name == explain.Server {
		return "the server"
	}
	return name
}

// textWidth is how wide text is set: as the terminal, within what is readable.
func (a *App) textWidth() int {
	const least, usual = 60, 80
	columns, terminal := a.terminal()
	if !terminal {
		return usual
	}
	return max(columns, least)
}

// prose writes text in lines of a width.
type prose struct {
	w     io.Writer
	width int
}

// write breaks a text between words; what does not fit goes on below its
// beginning. A word that is wider than the line stays whole, to be copied.
func (p prose) write(head, text string) {
	indent := strings.Repeat(" ", utf8.RuneCountInString(head))
	line, length := head, len([]rune(head))
	fresh := true
	for _, word := range strings.Fields(text) {
		wide := utf8.RuneCountInString(word)
		if !fresh && length+1+wide > p.width {
			fmt.Fprintln(p.w, line)
			line, length, fresh = indent, len(indent), true
		}
		if !fresh {
			line, length = line+" ", length+1
		}
		line, length, fresh = line+word, length+wide, false
	}
	fmt.Fprintln(p.w, line)
}
