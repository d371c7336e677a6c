package main

import (
	"errors"
	"fmt"
	"strings"
)

// target is something that a figure must not exceed.
type target struct {
	Name  string  `json:"name"`
	Limit float64 `json:"limit"`
	Value float64 `json:"value"`
	Met   bool    `json:"met"`
	// Must is set where the guarantees are at stake, not only how fast it is.
	Must bool `json:"must"`
}

// atMost judges a figure.
func atMost(name string, limit, value float64) target {
	return target{Name: name, Limit: limit, Value: value, Met: value <= limit}
}

// never judges a count of what must not happen.
func never(name string, count uint64) target {
	return target{Name: name, Value: float64(count), Met: count == 0, Must: true}
}

// unharmed are the targets of what a client must never see. Torn is the number
// of streams that were broken, or of which other bytes came back.
func unharmed(who string, all []seen, torn uint64) []target {
	var lost, duplicated, corrupted, replayed uint64
	for _, s := range all {
		lost, duplicated = lost+s.UDPLost, duplicated+s.UDPDuplicated
		corrupted, replayed = corrupted+s.UDPCorrupted, replayed+s.UDPReplayed
	}
	return []target{
		never(who+": packets lost", lost),
		never(who+": packets duplicated", duplicated),
		never(who+": packets corrupted or replayed", corrupted+replayed),
		never(who+": TCP streams broken or not byte-exact", torn),
	}
}

func (s screen) targets(targets []target) {
	rows := [][]string{{"target", "at most", "found", ""}}
	for _, one := range targets {
		verdict := "met"
		if !one.Met {
			verdict = "missed"
		}
		rows = append(rows, []string{one.Name, figureText(one.Limit), figureText(one.Value), verdict})
	}
	s.say("")
	s.table(rows)
}

// figureText gives counts without decimals.
func figureText(value float64) string {
	if value == float64(int64(value)) {
		return fmt.Sprintf("%.0f", value)
	}
	return fmt.Sprintf("%.2f", value)
}

// broken gives an error if something happened that must not.
func broken(targets []target) error {
	var what []string
	for _, one := range targets {
		if one.Must && !one.Met {
			what = append(what, fmt.Sprintf("%s: %s", one.Name, figureText(one.Value)))
		}
	}
	if len(what) == 0 {
		return nil
	}
	return errors.New(strings.Join(what, "; "))
}
