package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Remedies are there to be copied into a shell: what begins with godwit is a
// command with its arguments, and words about it come after a #.
func TestRemediesAreCommands(t *testing.T) {
	files, err := filepath.Glob("../migration/testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	listed := regexp.MustCompile(`(?m)^\|   remedies: (.+)$`)
	commands := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range listed.FindAllStringSubmatch(string(text), -1) {
			for remedy := range strings.SplitSeq(line[1], "; ") {
				if command, _, _ := strings.Cut(remedy, "#"); strings.HasPrefix(command, "godwit ") {
					commands[command] = true
				}
			}
		}
	}
	if len(commands) < 2 {
		t.Errorf("the scenarios name only %v", commands)
	}
	for command := range commands {
		if strings.ContainsAny(command, "()<>;&|$") {
			t.Errorf("%q means something else to a shell", command)
		}
		found, args, err := newRoot(silentApp()).Find(strings.Fields(command)[1:])
		if err == nil {
			err = found.ParseFlags(args)
		}
		if err == nil {
			err = found.ValidateArgs(found.Flags().Args())
		}
		if err != nil || !found.Runnable() {
			t.Errorf("%q is no command: %v", command, err)
		}
	}
}
