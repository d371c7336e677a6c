package explore

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the lists of docs/explorer.md anew")

// TestDocs holds docs/explorer.md to the lists of mutants and of guards without one.
func TestDocs(t *testing.T) {
	const page, begin = "../../docs/explorer.md", "<!-- from here on generated -->\n"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	written, _, found := strings.Cut(string(text), begin)
	if !found {
		t.Fatalf("%s has no line %q", page, begin)
	}
	want := written + begin + lists()
	if *rewrite {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(text) {
		t.Errorf("%s is not as the lists are; to write it anew: go test ./internal/explore -run TestDocs -rewrite", page)
	}
}

func lists() string {
	var out strings.Builder
	out.WriteString("\n## Mutants\n\n| what is wrong | faults |\n|---|---|\n")
	for _, one := range Mutants() {
		fmt.Fprintf(&out, "| %s | %d |\n", one.Name, one.Options.Faults)
	}
	out.WriteString("\n## Guards without a mutant\n\nTaking one of these out changes nothing that is explored.\n\n| guard | why |\n|---|---|\n")
	for _, one := range UnmissedGuards() {
		fmt.Fprintf(&out, "| %s | %s |\n", one.Guard, one.Why)
	}
	return out.String()
}
