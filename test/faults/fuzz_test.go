package main

import (
	"os"
	"path/filepath"
	"testing"

	"godwit.dev/godwit/internal/lab/witness"
)

// FuzzFrame: only a whole frame of the guest counts as one, and only by a host
// that can be named.
func FuzzFrame(f *testing.F) {
	payload := make([]byte, witness.HeaderSize)
	witness.Packet{Reply: true, Sequence: 2}.Marshal(payload)
	whole := udpFrame(guestMAC, one, vxlanPort, append(make([]byte, vxlanSize), udpFrame(guestMAC, one, 9, payload)...))
	for _, frame := range [][]byte{whole, whole[:innerAt+ethernetSize], whole[:innerAt], whole[:payloadAt], whole[:payloadAt+1]} {
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		s, ok := parseFrame(frame, guestMAC)
		if ok != s.host.IsValid() || !ok && s.reply != nil {
			t.Errorf("%v, and it is %+v", ok, s)
		}
		if s.reply != nil && !s.reply.Reply {
			t.Error("a question counts as a reply")
		}
	})
}

// FuzzReport reads the file of results: what is read can be written and is the
// same then.
func FuzzReport(f *testing.F) {
	for _, seed := range []string{`{"cells": [{"ran": true, "violations": ["x"]}]}`, `{"cells": null}`, `[]`, `{"cells": [{"took": -1}]}`, `{`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "faults.json")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := load(path)
		if err != nil {
			return
		}
		if err := r.save(path); err != nil {
			t.Fatalf("it cannot be written: %v", err)
		}
		again, err := load(path)
		if err != nil || len(again.Cells) != len(r.Cells) {
			t.Errorf("%d cells became %d, %v", len(r.Cells), len(again.Cells), err)
		}
		for _, one := range r.Cells {
			if _, had := r.find(one.cell); had != one.Ran && one.Ran {
				t.Errorf("%v is not found", one.cell)
			}
		}
	})
}
