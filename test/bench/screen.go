package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"godwit.dev/godwit/internal/demo"
)

// patience is how long nothing may be said while something goes on.
const patience = 2 * time.Second

// screen tells a person what happens.
type screen struct{ io.Writer }

func (s screen) say(format string, args ...any) { fmt.Fprintf(s, format+"\n", args...) }

// during begins a line with what goes on, adds a dot whenever it goes on for
// two more seconds, and ends the line with what came of it.
func (s screen) during(what string, do func() (string, error)) error {
	fmt.Fprint(s, what, "  ")
	type result struct {
		text string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := do()
		done <- result{text, err}
	}()
	beat, after := time.NewTicker(patience), ""
	defer beat.Stop()
	for {
		select {
		case r := <-done:
			if r.err != nil {
				r.text = "failed"
			}
			s.say("%s%s", after, r.text)
			return r.err
		case <-beat.C:
			fmt.Fprint(s, ".")
			after = " "
		}
	}
}

// step is during for what takes time and has no result of its own.
func (s screen) step(what string, do func() error) error {
	begun := time.Now()
	return s.during(what, func() (string, error) {
		err := do()
		return fmt.Sprintf("%.1f s", time.Since(begun).Seconds()), err
	})
}

// table prints rows of cells, the first column to the left, in columns as wide
// as they must be. The first row is the head.
func (s screen) table(rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			if i == 0 {
				fmt.Fprintf(&line, "%-*s", widths[i], cell)
			} else {
				fmt.Fprintf(&line, "  %*s", widths[i], cell)
			}
		}
		s.say("%s", strings.TrimRight(line.String(), " "))
	}
}

// spread gives min, median and max.
func spread(s demo.Spread) string { return fmt.Sprintf("%.1f / %.1f / %.1f", s.Min, s.Median, s.Max) }
