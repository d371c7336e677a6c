package demo

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

const (
	// patience is how long nothing may be said while something goes on.
	patience = 2 * time.Second
	// remindEvery is the time between two reminders after that.
	remindEvery = 10 * time.Second

	labelled = 12 // columns of a row's label
	barWidth = 32 // columns of the longest phase
)

// screen tells a person what happens, in whole lines.
type screen struct {
	w     io.Writer
	paint func(code, text string) string
}

// The codes of ECMA-48's SGR.
const (
	bold  = "1"
	green = "32"
	red   = "31"
	faint = "2"
)

func (s screen) say(format string, args ...any) { fmt.Fprintf(s.w, format+"\n", args...) }

// row says something under a label.
func (s screen) row(label, format string, args ...any) {
	s.say("  %s%s", pad(label, labelled), fmt.Sprintf(format, args...))
}

// pad fills a text up with blanks, by characters.
func pad(text string, columns int) string {
	return text + strings.Repeat(" ", max(1, columns-utf8.RuneCountInString(text)))
}

// during says what goes on while do runs, and now and then that it still does.
func (s screen) during(what string, do func() error) error {
	s.say("· %s", what)
	begun := time.Now()
	done := make(chan error, 1)
	go func() { done <- do() }()
	beat := time.NewTimer(patience)
	defer beat.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-beat.C:
			s.say("  %s", s.paint(faint, fmt.Sprintf("… %.0f s", time.Since(begun).Seconds())))
			beat.Reset(remindEvery)
		}
	}
}

// follow gives what is called with every change of a migration; it says where
// the migration is when that takes long.
func (s screen) follow() func(*godwitv1.Migration) {
	said := time.Now()
	return func(m *godwitv1.Migration) {
		if time.Since(said) < patience {
			return
		}
		said = time.Now()
		text := m.GetState()
		if p := m.GetProgress(); p != nil && text == "copying" {
			text += fmt.Sprintf(": pass %d, %v sent, %v left", p.GetPass(), fleet.Bytes(p.GetSentBytes()), fleet.Bytes(p.GetRemainingBytes()))
		}
		s.say("  %s", s.paint(faint, "… "+text))
	}
}

// migration shows the timeline of one hand-over and what the client saw.
func (s screen) migration(m *godwitv1.Migration, client Client) {
	outcome := m.GetOutcome()
	color := green
	if m.GetState() != "succeeded" {
		color = red
	}
	ended := s.paint(color, m.GetState())
	if m.GetCause() != "" {
		ended += ": " + m.GetCause()
	}
	s.row("result", "%s", ended)
	prepared, stopped := began(m, "copying"), began(m, "switching")
	if prepared > 0 {
		s.row("prepare", "%10s   the target is made ready, and the guest is measured", millis(prepared))
	}
	if copied := stopped - prepared; stopped > 0 {
		s.row("copy", "%10s   %v sent in %s, while the VM runs", millis(copied), fleet.Bytes(outcome.GetBytes()), passes(outcome.GetPasses()))
	}
	if outcome.GetBlackoutMs() > 0 {
		s.blackout(outcome)
	}
	if n := outcome.GetFramesDrained(); n > 0 {
		s.row("forwarded", "%10d   frames that had reached the source's ports before", n)
	}
	if n := outcome.GetFramesReturned(); n > 0 {
		s.row("returned", "%10d   frames that had waited at the target", n)
	}
	if outcome.GetTotalMs() > 0 {
		s.row("total", "%10s   from the request to the first instruction on %s", millis(outcome.GetTotalMs()), m.GetTarget())
	}
	s.client(client)
	s.say("")
}

// began gives the time from the request to a state, in milliseconds.
func began(m *godwitv1.Migration, state string) float64 {
	for _, entry := range m.GetStory() {
		if entry.GetState() == state {
			return milliseconds(entry.GetAt().AsTime().Sub(m.GetCreated().AsTime()))
		}
	}
	return 0
}

func passes(n int32) string {
	if n == 1 {
		return "1 pass"
	}
	return fmt.Sprintf("%d passes", n)
}

func (s screen) blackout(outcome *godwitv1.Outcome) {
	s.row("blackout", "%10s   no vCPU runs; %s are Godwit's, the rest QEMU's",
		millis(outcome.GetBlackoutMs()), millis(outcome.GetOwnMs()))
	longest := 0.0
	for _, phase := range outcome.GetPhases() {
		longest = max(longest, phase.GetMs())
	}
	for _, phase := range outcome.GetPhases() {
		s.row("", "%10s   %s%s", millis(phase.GetMs()), pad(phase.GetName(), labelled), bar(phase.GetMs(), longest))
	}
}

// bar is as long as the part is of the whole, to an eighth of a column.
func bar(part, whole float64) string {
	if whole <= 0 || part <= 0 {
		return ""
	}
	eighths := int(part / whole * barWidth * 8)
	text := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		text += string(rune('█' + 8 - rest)) // U+2588 full block … U+258F one eighth
	}
	if text == "" {
		return "▏"
	}
	return text
}

func (s screen) client(c Client) {
	lost := s.paint(green, fmt.Sprintf("%d lost, %d duplicated", c.UDPLost, c.UDPDuplicated))
	if c.UDPLost+c.UDPDuplicated > 0 {
		lost = s.paint(red, fmt.Sprintf("%d lost, %d duplicated", c.UDPLost, c.UDPDuplicated))
	}
	s.row("client", "%10d   packets sent: %s", c.UDPSent, lost)
	s.row("", "%10s   was the longest time without an answer", millis(c.LongestGapMs))
	stream := s.paint(green, "unbroken")
	if c.TCPBroken {
		stream = s.paint(red, "broken")
	}
	s.row("", "%10v   came back on its TCP stream, %s", fleet.Bytes(c.TCPBytes), stream)
}

// millis gives milliseconds with the digits that matter.
func millis(ms float64) string {
	switch {
	case ms >= 1000:
		return fmt.Sprintf("%.2f s", ms/1000)
	case ms >= 100:
		return fmt.Sprintf("%.0f ms", ms)
	case ms >= 10:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.2f ms", ms)
}

// fewest is how many migrations make a summary worth reading.
const fewest = 3

// summary shows what came of all migrations, and the spread over those that
// succeeded.
func (s screen) summary(report Report) {
	var total, blackout, own, gap []float64
	cancelled := 0
	var sent, lost, duplicated uint64
	for _, m := range report.Migrations {
		sent, lost, duplicated = sent+m.Client.UDPSent, lost+m.Client.UDPLost, duplicated+m.Client.UDPDuplicated
		if m.State == aborted && m.want == aborted {
			cancelled++
		}
		if m.State != succeeded {
			continue
		}
		total, blackout = append(total, m.TotalMs), append(blackout, m.BlackoutMs)
		own, gap = append(own, m.OwnMs), append(gap, m.Client.LongestGapMs)
	}
	ended := fmt.Sprintf("succeeded %d", len(total))
	if cancelled > 0 {
		ended += fmt.Sprintf(", cancelled %d as asked", cancelled)
	}
	if others := len(report.Migrations) - len(total) - cancelled; others > 0 {
		ended += fmt.Sprintf(", ended otherwise %d", others)
	}
	s.say("%s", s.paint(bold, fmt.Sprintf("In all: migrations %d, %s; packets sent %d, lost %d, duplicated %d.",
		len(report.Migrations), ended, sent, lost, duplicated)))
	if len(total) < fewest {
		return
	}
	s.row("", "%10s %10s %10s", "min", "median", "max")
	for _, line := range []struct {
		label  string
		values []float64
	}{{"total", total}, {"blackout", blackout}, {"own share", own}, {"client gap", gap}} {
		spread := SpreadOf(line.values)
		s.row(line.label, "%10s %10s %10s", millis(spread.Min), millis(spread.Median), millis(spread.Max))
	}
	s.say("")
}
