package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"godwit.dev/godwit/internal/durable"
)

// report is what the file says.
type report struct {
	Moves []move `json:"moves"`
	Guest guest  `json:"guest"`
}

// move is one migration. Times are milliseconds.
type move struct {
	Target     string  `json:"target"`
	State      string  `json:"state"`
	Cause      string  `json:"cause"`
	TotalMs    float64 `json:"total_ms"`
	BlackoutMs float64 `json:"blackout_ms"`
}

// guest is what the guest says at its end.
type guest struct {
	Rounds       int  `json:"rounds"`       // of pgbench
	Transactions int  `json:"transactions"` // acknowledged
	Failed       int  `json:"failed"`
	History      int  `json:"history"`  // rows, one of each transaction
	Balanced     bool `json:"balanced"` // the sums of balances are those of the rows
	Amcheck      int  `json:"amcheck"`  // exit status of pg_amcheck
	Fsck         int  `json:"fsck"`     // exit status of e2fsck -n
}

func (r report) print(w io.Writer) {
	g := r.Guest
	fmt.Fprintf(w, "\n%d migrations; %d transactions in %d rounds of pgbench, %d failed\n", len(r.Moves), g.Transactions, g.Rounds, g.Failed)
	fmt.Fprintf(w, "%d rows of history, sums equal: %v; pg_amcheck: exit status %d; e2fsck: exit status %d\n", g.History, g.Balanced, g.Amcheck, g.Fsck)
}

func (r report) save(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return durable.WriteFile(path, append(text, '\n'), 0o644)
}

// verdict is an error that names all that is not as it must be.
func (r report) verdict() error {
	var wrong []string
	for i, one := range r.Moves {
		if one.State != "succeeded" {
			wrong = append(wrong, fmt.Sprintf("migration %d is %s: %s", i+1, one.State, one.Cause))
		}
	}
	g := r.Guest
	if g.Transactions == 0 {
		wrong = append(wrong, "there were no transactions")
	}
	if g.Failed > 0 {
		wrong = append(wrong, fmt.Sprintf("%d transactions failed", g.Failed))
	}
	if g.History != g.Transactions || !g.Balanced {
		wrong = append(wrong, fmt.Sprintf("%d transactions were acknowledged and %d are there; sums equal: %v", g.Transactions, g.History, g.Balanced))
	}
	if g.Amcheck != 0 || g.Fsck != 0 {
		wrong = append(wrong, "the database or its file system is damaged")
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%s", strings.Join(wrong, "; "))
}
