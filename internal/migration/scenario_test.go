package migration

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

var rewrite = flag.Bool("rewrite", false, "write the traces of the scenario files anew")

// TestScenarios plays the files in testdata. A line of a file is an event, as
// "+SECONDS KIND [KEY=VALUE …]", the lines behind it that begin with "|" are
// the whole trace that it must leave; "#" begins a comment.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			played := play(t, string(text))
			if *rewrite {
				if err := os.WriteFile(file, []byte(played), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if played != string(text) {
				t.Errorf("the trace differs; if it should, run with -rewrite and read the change:\n%s", played)
			}
		})
	}
}

// play gives the text with every trace made anew.
func play(t *testing.T, text string) string {
	var out strings.Builder
	m := newMigration()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "|") {
			continue
		}
		fmt.Fprintln(&out, line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		e := parseEvent(t, m, line)
		next, effects, verdict := Step(m, e)
		trace(&out, m, next, effects, verdict)
		checkStory(t, m, next, e, effects)
		m = next
	}
	return out.String()
}

func parseEvent(t *testing.T, m Migration, line string) Event {
	words := strings.Fields(line)
	seconds, err := strconv.ParseFloat(strings.TrimPrefix(words[0], "+"), 64)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	e := event(m, EventKind(words[1]))
	e.At = epochZero.Add(time.Duration(seconds * float64(time.Second)))
	e.Detail = ""
	for _, word := range words[2:] {
		key, value, _ := strings.Cut(word, "=")
		number, _ := strconv.Atoi(value)
		switch key {
		case "port":
			e.Port = uint16(number)
		case "disk-port":
			e.DiskPort = uint16(number)
		case "disks": // of 4 GiB, at 512 MiB a second
			e.Progress.DiskCopied, e.Progress.DiskTotal, e.Progress.DiskRate = fleet.Bytes(number)*fleet.GiB, 4*fleet.GiB, 512<<20
		case "frames":
			e.Frames = number
		case "answers":
			e.Answers = uint64(number)
		case "from":
			e.From = value
		case "detail":
			e.Detail = strings.ReplaceAll(value, "_", " ")
		case "due":
			e.Due = epochZero.Add(time.Duration(number) * time.Second)
		case "gone":
			e.Gone = true
		case "locked":
			e.Locked = value
		case "unrun":
			e.Unrun = true
		case "pass":
			e.Progress.Pass, e.Progress.PassBegins = number, true
		default:
			t.Fatalf("%q: unknown key %q", line, key)
		}
	}
	return e
}

func trace(out *strings.Builder, before, after Migration, effects []Effect, verdict Verdict) {
	if verdict != Act {
		fmt.Fprintf(out, "| %s\n", verdict)
		return
	}
	owner := after.Owner()
	fmt.Fprintf(out, "| %s → %s, owner %s at %d, locked %v\n", before.State, after.State, owner.Host, owner.Epoch, after.Locked())
	for _, effect := range effects {
		fmt.Fprintf(out, "|   want %d %s on %s", effect.Sequence, effect.Kind, effect.Host)
		if effect.ReturnFrames {
			fmt.Fprint(out, ", frames return")
		}
		if effect.Epoch != 0 {
			fmt.Fprintf(out, ", at epoch %d", effect.Epoch)
		}
		fmt.Fprintln(out)
	}
	if story := after.Story; len(story) > len(before.Story) && len(story[len(story)-1].Withdrawn) > 0 {
		fmt.Fprintf(out, "|   withdraw %v\n", story[len(story)-1].Withdrawn)
	}
	if after.DiskPort != before.DiskPort {
		fmt.Fprintf(out, "|   disks go to port %d\n", after.DiskPort)
	}
	if p := after.Progress; p.DiskTotal > 0 && p != before.Progress {
		fmt.Fprintf(out, "|   disks: %s of %s, eta %v\n", p.DiskCopied, p.DiskTotal, p.ETA())
	}
	if len(after.Pending) > len(effects) {
		fmt.Fprintf(out, "|   still waiting for %d\n", len(after.Pending)-len(effects))
	}
	if after.Timer != nil && (before.Timer == nil || *after.Timer != *before.Timer) {
		fmt.Fprintf(out, "|   timer at +%v: %s\n", after.Timer.At.Sub(epochZero).Seconds(), after.Timer.What)
	}
	if after.Cause != before.Cause {
		fmt.Fprintf(out, "|   cause: %s\n", after.Cause)
	}
	if !slices.Equal(after.Remedies, before.Remedies) {
		fmt.Fprintf(out, "|   remedies: %s\n", strings.Join(after.Remedies, "; "))
	}
}
