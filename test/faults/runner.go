package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"godwit.dev/godwit/internal/lab/fleetlab"
)

const (
	// maxTries bounds how often a cell is run because its state was not hit.
	maxTries = 3
	// maxBroken bounds how many labs in a row may break without a result.
	maxBroken = 3
)

// runner runs cells one after the other in a lab, and makes another lab when
// a cell has damaged it.
type runner struct {
	config fleetlab.Config
	logs   string // folder for what programs said in cells with violations
	out    io.Writer

	fleet  *fleetlab.Fleet
	number int // of trials
	broken int
}

// run runs one cell. The error says that nothing can be run any more.
func (r *runner) run(ctx context.Context, c cell) (result, error) {
	if why := c.lacks(size{r.config.Servers, r.config.Etcd}); why != "" {
		return notRun(c, why), nil
	}
	missed := ""
	var before []string // violations in tries that missed: they count as well
	for try := 1; try <= maxTries; try++ {
		one, why, err := r.once(ctx, c)
		if err != nil {
			return result{}, err
		}
		if one.Tries = try; why == "" {
			one.Violations = append(before, one.Violations...)
			return one, nil
		}
		missed = why
		for _, violation := range one.Violations {
			before = append(before, fmt.Sprintf("in a try that missed its state (%s): %s", why, violation))
		}
	}
	one := notRun(c, fmt.Sprintf("not hit in %d tries: %s", maxTries, missed))
	one.Tries, one.Violations = maxTries, append(before, one.Violations...)
	return one, nil
}

// once runs a cell once. Missed says why there is no result of the cell.
func (r *runner) once(ctx context.Context, c cell) (one result, missed string, err error) {
	if err := r.ready(ctx); err != nil {
		return one, "", err
	}
	r.number++
	begun := r.positions()
	one, missed, err = tryCell(ctx, r.fleet, c, r.number)
	if err != nil {
		return notRun(c, err.Error()), err.Error(), r.breaks(ctx, c, err, begun)
	}
	r.broken = 0
	if len(one.Violations) > 0 {
		err = r.tell(c.String(), one.found(), begun)
	}
	if one.damaged() {
		err = errors.Join(err, r.close())
	}
	return one, missed, err
}

// breaks removes a lab that does not work any more, or gives up if that has
// become the rule.
func (r *runner) breaks(ctx context.Context, c cell, why error, begun []int) error {
	if r.broken++; r.broken == maxBroken || ctx.Err() != nil {
		return errors.Join(why, r.close())
	}
	fmt.Fprintf(r.out, "  the lab is made anew: %v\n", why)
	return errors.Join(r.tell(c.String(), notRun(c, why.Error()).found(), begun), r.close())
}

// ready makes a lab if there is none.
func (r *runner) ready(ctx context.Context) (err error) {
	if r.fleet == nil {
		r.fleet, err = fleetlab.Start(ctx, r.config)
	}
	return err
}

func (r *runner) close() error {
	if r.fleet == nil {
		return nil
	}
	fleet := r.fleet
	r.fleet = nil
	return fleet.Close()
}

func (r *runner) processes() []*fleetlab.Process {
	all := slices.Concat(r.fleet.Servers(), r.fleet.Etcds())
	for _, host := range r.fleet.Hosts() {
		all = append(all, r.fleet.Agent(host))
	}
	return append(all, r.fleet.VolumeServer(storageHost).Process)
}

// positions tells how long each program's log is.
func (r *runner) positions() (ends []int) {
	for _, process := range r.processes() {
		text, _ := process.Log() // one that is not there yet has length 0
		ends = append(ends, len(text))
	}
	return ends
}

// tell writes what programs have said since, beside what was found.
func (r *runner) tell(name, found string, since []int) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s\n%s\n", name, found)
	for i, process := range r.processes() {
		said, err := process.Log()
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "\n== %s\n%s", filepath.Base(process.LogPath()), said[since[i]:])
	}
	if err := os.MkdirAll(r.logs, 0o755); err != nil {
		return err
	}
	file := strings.ToLower(strings.ReplaceAll(name, " ", "_")) + ".txt"
	return os.WriteFile(filepath.Join(r.logs, file), []byte(text.String()), 0o644)
}
