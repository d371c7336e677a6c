package cli

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// view shows a migration while it goes on. Show gets every state as it comes,
// end the last one once more. A view is used by one goroutine.
type view interface {
	show(*godwitv1.Migration) error
	end(*godwitv1.Migration) error
}

// newView gives the view that suits standard output.
func (a *App) newView() view {
	_, terminal := a.terminal()
	switch {
	case a.json:
		return jsonView{a}
	case terminal && a.Getenv("TERM") != "dumb":
		return &liveView{app: a}
	}
	return &lineView{app: a}
}

// jsonView prints one object a line.
type jsonView struct{ app *App }

func (v jsonView) show(m *godwitv1.Migration) error { return v.app.printLine(m) }
func (v jsonView) end(*godwitv1.Migration) error    { return nil }

// endView prints only how it ended.
type endView struct{ app *App }

func (*endView) show(*godwitv1.Migration) error { return nil }

func (v *endView) end(m *godwitv1.Migration) error {
	return v.app.printOne(m, func(w io.Writer) { v.app.summary(w, m) })
}

// linePause is the least time between two lines about the same state.
const linePause = time.Second

// lineView prints a line for each change of state and, within one state, at
// most one a second.
type lineView struct {
	app   *App
	state string
	said  time.Time
}

func (v *lineView) show(m *godwitv1.Migration) error {
	now := v.app.Now()
	if m.GetState() == v.state && now.Sub(v.said) < linePause {
		return nil
	}
	line := now.Local().Format("15:04:05 ") + m.GetState()
	if m.GetState() != v.state && m.GetCause() != "" {
		line += ": " + m.GetCause()
	}
	if progress := m.GetProgress(); progress != nil && m.GetState() == "copying" {
		line += "  " + stage(progress) + "  " + amounts(progress) + "  eta " + eta(progress)
	}
	v.state, v.said = m.GetState(), now
	_, err := fmt.Fprintln(v.app.Out, line)
	return err
}

func (v *lineView) end(m *godwitv1.Migration) error {
	return v.app.printText(func(w io.Writer) { v.app.summary(w, m) })
}

// liveView draws over its own last drawing. Its lines never wrap, so that the
// number of lines to go back is known.
type liveView struct {
	app   *App
	drawn int // lines on the screen
}

func (v *liveView) show(m *godwitv1.Migration) error {
	columns, _ := v.app.terminal()
	lines := v.lines(m, columns)
	var frame strings.Builder
	frame.WriteString(v.clear())
	for _, line := range lines {
		frame.WriteString(line + "\n")
	}
	v.drawn = len(lines)
	_, err := io.WriteString(v.app.Out, frame.String())
	return err
}

func (v *liveView) end(m *godwitv1.Migration) error {
	return v.app.printText(func(w io.Writer) {
		io.WriteString(w, v.clear())
		v.app.summary(w, m)
	})
}

// clear gives the codes that take the last drawing away (ECMA-48: CUU, ED).
func (v *liveView) clear() string {
	if v.drawn == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\r\x1b[J", v.drawn)
}

func (v *liveView) lines(m *godwitv1.Migration, columns int) []string {
	const barWidth = 24
	style := v.app.style()
	fit := func(text string) string { return cut(text, columns-1) }
	lines := []string{
		style.bold(fit(fmt.Sprintf("%s: %s → %s  (%s)", m.GetVm(), m.GetSource(), m.GetTarget(), m.GetId()))),
	}
	progress, state := m.GetProgress(), m.GetState()
	if state != "copying" || progress == nil {
		text := fit(strings.TrimSuffix(state+": "+m.GetCause(), ": "))
		return append(lines, strings.Replace(text, state, style.state(state), 1))
	}
	head := fmt.Sprintf("%s  %s %3.0f%%  %s  eta %s", state,
		bar(fraction(progress), barWidth), 100*fraction(progress), stage(progress), eta(progress))
	return append(lines, strings.Replace(fit(head), state, style.state(state), 1), fit(amounts(progress)))
}

// cut shortens a text to what fits in the given number of columns.
func cut(text string, columns int) string {
	if utf8.RuneCountInString(text) <= columns {
		return text
	}
	return string([]rune(text)[:max(columns-1, 0)]) + "…"
}

// copiesDisks tells whether the local disks are being copied, before the memory.
func copiesDisks(progress *godwitv1.Progress) bool {
	return progress.GetPass() == 0 && progress.GetDiskTotalBytes() > 0
}

// stage says what is copied.
func stage(progress *godwitv1.Progress) string {
	if copiesDisks(progress) {
		return "disks"
	}
	return "pass " + number(progress.GetPass())
}

// fraction gives how much of the memory, or before that of the disks, is the same at
// both ends.
func fraction(progress *godwitv1.Progress) float64 {
	if copiesDisks(progress) {
		return min(1, float64(progress.GetDiskCopiedBytes())/float64(progress.GetDiskTotalBytes()))
	}
	if progress.GetTotalBytes() == 0 {
		return 0
	}
	return 1 - min(1, float64(progress.GetRemainingBytes())/float64(progress.GetTotalBytes()))
}

func bar(fraction float64, width int) string {
	full := int(fraction * float64(width))
	return "[" + strings.Repeat("█", full) + strings.Repeat("░", width-full) + "]"
}

func amounts(progress *godwitv1.Progress) string {
	if copiesDisks(progress) {
		return fmt.Sprintf("disks %s of %s  bandwidth %s",
			size(progress.GetDiskCopiedBytes()), size(progress.GetDiskTotalBytes()), rate(progress.GetDiskBytesPerSecond()))
	}
	return fmt.Sprintf("sent %s  left %s  dirty %s  bandwidth %s",
		size(progress.GetSentBytes()), size(progress.GetRemainingBytes()),
		rate(progress.GetDirtyBytesPerSecond()), rate(progress.GetBandwidthBytesPerSecond()))
}

func eta(progress *godwitv1.Progress) string {
	if progress.GetEtaMs() < 0 {
		return "not in sight"
	}
	return (time.Duration(progress.GetEtaMs()) * time.Millisecond).Round(100 * time.Millisecond).String()
}
