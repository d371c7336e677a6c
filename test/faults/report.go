package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// report is the file with all results.
type report struct {
	Build string   `json:"build"` // of the godwit program, its SHA-256
	Cells []result `json:"cells"`
}

// buildOf tells one build of a program from another.
func buildOf(path string) (string, error) {
	program, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(program)), nil
}

// ofBuild gives the results if they are of a build, and else none.
func (r report) ofBuild(build string) (own report, other int) {
	if r.Build == build {
		return r, 0
	}
	return report{Build: build}, len(r.Cells)
}

// load reads the results of earlier runs; none if there is no file.
func load(path string) (r report, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// save writes them, in the order of the matrix.
func (r report) save(path string) error { return saveJSON(path, r) }

// find gives the result of a cell that was run.
func (r report) find(c cell) (result, bool) {
	for _, one := range r.Cells {
		if one.cell == c && one.Ran {
			return one, true
		}
	}
	return result{}, false
}

// put sets the result of a cell, in the order of the matrix.
func (r *report) put(one result) {
	if one.Violations == nil {
		one.Violations = []string{} // not null, in the file
	}
	known := map[cell]result{one.cell: one}
	for _, other := range r.Cells {
		if other.cell != one.cell {
			known[other.cell] = other
		}
	}
	r.Cells = r.Cells[:0:0]
	for _, c := range matrix(faults, victims, states) {
		if other, is := known[c]; is {
			r.Cells = append(r.Cells, other)
		}
	}
}

// only gives the results of some cells.
func (r report) only(cells []cell) (chosen report) {
	for _, c := range cells {
		for _, one := range r.Cells {
			if one.cell == c {
				chosen.Cells = append(chosen.Cells, one)
			}
		}
	}
	return chosen
}

// violations counts the cells in which something was violated.
func (r report) violations() (count int) {
	for _, one := range r.Cells {
		if len(one.Violations) > 0 {
			count++
		}
	}
	return count
}

// missed counts the cells that were tried in vain, and so show nothing.
func (r report) missed() (count int) {
	for _, one := range r.Cells {
		if !one.Ran && one.Tries > 0 {
			count++
		}
	}
	return count
}

func (r report) print(w io.Writer) {
	rows := [][]string{{"state", "victim", "fault", "final", "runs on", "pause ms", "disk ms", "blackout ms", "settled ms", "lost", "doubled", ""}}
	ran := 0
	for _, one := range r.Cells {
		row := []string{string(one.State), string(one.Victim), string(one.Fault)}
		if !one.Ran {
			rows = append(rows, append(row, "-", "-", "-", "-", "-", "-", "-", "-", one.Why))
			continue
		}
		ran++
		verdict := one.Why
		if len(one.Violations) > 0 {
			verdict = "VIOLATED: " + strings.Join(one.Violations, "; ")
		}
		rows = append(rows, append(row, one.Final, one.RunsOn, figure(one.PauseMs), figure(one.DiskPauseMs), figure(one.BlackoutMs),
			figure(one.SettledMs), fmt.Sprint(one.Lost), fmt.Sprint(one.Duplicated), verdict))
	}
	table(w, rows)
	fmt.Fprintf(w, "\n%d cells: %d run, %d not; %d with violations\n", len(r.Cells), ran, len(r.Cells)-ran, r.violations())
	fmt.Fprintln(w, "pause: longest gap in the client's echoes; disk: longest time without a record on the guest's disk; settled: from the fault to the final state")
}

func figure(ms float64) string {
	if ms < 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", ms)
}

// table prints rows in columns as wide as they must be.
func table(w io.Writer, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, text := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len([]rune(text)))
		}
	}
	widths[len(widths)-1] = 0 // the last has all the room there is
	for _, row := range rows {
		var line strings.Builder
		for i, text := range row {
			fmt.Fprintf(&line, "%-*s  ", widths[i], text)
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}
