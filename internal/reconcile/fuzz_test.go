package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"testing"

	"google.golang.org/protobuf/encoding/protodelim"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// oneMove is a store with a migration that is being copied. It takes no commit,
// and notes that it was asked for one.
type oneMove struct {
	store.Records
	asked bool
}

func (o *oneMove) Get(_ context.Context, key string) (store.Record, error) {
	var value any
	switch key {
	case "migrations/m-1":
		value = migration.Migration{
			ID: "m-1", VM: "web1", Source: "h1", Target: "h2", Epoch: 1, State: migration.Copying, Policy: migration.DefaultPolicy(fleet.GiB),
		}
	case "vms/web1":
		value = fleet.VM{Name: "web1", Migration: "m-1", Owner: fleet.Owner{Host: "h1", Epoch: 1}}
	default:
		return store.Record{}, &fleet.Error{Code: fleet.NotFound}
	}
	text, err := json.Marshal(value)
	return store.Record{Key: key, Value: text, Version: 1}, err
}

func (o *oneMove) Commit(context.Context, []store.Condition, ...store.Op) (int64, error) {
	o.asked = true
	return 0, &fleet.Error{Code: fleet.Unavailable}
}

// said is a line on which everything was said already.
type said struct {
	*bytes.Reader
	loaded bool // for m-1 at epoch 1
}

func (s *said) Receive() (*godwitv1.CommitRequest, error) {
	request := &godwitv1.CommitRequest{}
	if protodelim.UnmarshalFrom(s, request) != nil {
		return nil, io.ErrUnexpectedEOF
	}
	s.loaded = s.loaded || request.GetLoaded() && request.GetMigration() == "m-1" && request.GetEpoch() == 1
	return request, nil
}

func (s *said) Send(*godwitv1.CommitResponse) error { return nil }

// FuzzCommit puts anything on the line of a target: only its word that it has
// loaded commits.
func FuzzCommit(f *testing.F) {
	opens := &godwitv1.CommitRequest{Migration: "m-1", Epoch: 1}
	loaded := &godwitv1.CommitRequest{Migration: "m-1", Epoch: 1, Loaded: true}
	for _, seed := range [][]*godwitv1.CommitRequest{
		{opens, loaded}, {loaded}, {opens}, {opens, opens}, {opens, {}}, {{}},
		{opens, {Migration: "m-2", Epoch: 1, Loaded: true}}, {opens, {Migration: "m-1", Epoch: 2, Loaded: true}},
	} {
		var text bytes.Buffer
		for _, request := range seed {
			if _, err := protodelim.MarshalTo(&text, request); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(text.Bytes())
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		records, line := &oneMove{}, &said{Reader: bytes.NewReader(text)}
		r := New(Config{
			Tables: Tables{
				Store: records, VMs: store.NewTable[fleet.VM](records, "vms"), Migrations: store.NewTable[migration.Migration](records, "migrations"),
			},
			Log: slog.New(slog.DiscardHandler),
		})
		if err := r.ServeCommit(t.Context(), "h2", line, func() {}); err == nil {
			t.Error("it was granted, and could not be saved")
		}
		if records.asked && !line.loaded {
			t.Error("it commits, and the target has not said that it has loaded")
		}
	})
}
