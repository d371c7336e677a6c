package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
)

const recordFile = "machine.json"

// writeRecord replaces the record. Once it has returned, what that promises
// holds even if the host loses its power.
func writeRecord(dir string, r record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the machine's record: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, recordFile), data, 0o600); err != nil {
		return &fleet.Error{
			Code: fleet.Failed, Op: "write the machine's record", Subject: dir, Err: err,
			Hint: "see whether the disk of the agent's folder is full",
		}
	}
	return nil
}

func readRecord(dir string) (r record, err error) {
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, err
}
