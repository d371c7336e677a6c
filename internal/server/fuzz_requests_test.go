package server

import (
	"context"
	"testing"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// FuzzPolicy reads what a request may ask of a migration: what is taken has
// limits that hold, and can be stored.
func FuzzPolicy(f *testing.F) {
	for _, seed := range []*godwitv1.MigrationPolicy{
		{}, {CopyLimitMs: 1, SwitchLimitMs: 1, BlackoutMaxMs: 1, BandwidthMax: 1}, {CopyLimitMs: -1},
		{SwitchLimitMs: longestLimit.Milliseconds()}, {BlackoutMaxMs: longestLimit.Milliseconds() + 1}, {BandwidthMax: 1<<64 - 1},
	} {
		text, err := proto.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, uint64(fleet.GiB))
	}
	f.Add([]byte{}, uint64(1<<64-1))
	f.Fuzz(func(t *testing.T, text []byte, memory uint64) {
		request := &godwitv1.MigrationPolicy{}
		if proto.Unmarshal(text, request) != nil || memory > uint64(maxMemory) {
			return
		}
		policy, err := policyOf(request, fleet.Bytes(memory))
		if err != nil {
			if code := fleet.CodeOf(err); code != fleet.Invalid {
				t.Errorf("%v is refused with %s: %v", request, code, err)
			}
			return
		}
		if policy.CopyMax <= 0 || policy.SwitchMax <= 0 || policy.BlackoutMax <= 0 {
			t.Errorf("%v was taken as %+v", request, policy)
		}
		checkStored(t, policy)
	})
}

// FuzzPage reads which page is asked for: it is never empty, nor endless.
func FuzzPage(f *testing.F) {
	f.Add(int32(0), "")
	f.Add(int32(-1), "../vms")
	f.Add(int32(1<<31-1), "\xff")
	f.Fuzz(func(t *testing.T, size int32, token string) {
		page := pageOf(&godwitv1.PageRequest{Size: size, Token: token})
		if page.Limit < 1 || page.Limit > store.MaxPage || page.After != token {
			t.Errorf("%d after %q is %+v", size, token, page)
		}
	})
}

// FuzzAnswer puts anything in the place of an answer that was kept: a request is
// answered with it, or told that it is another's or damaged.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{`{"request": "AQ==", "answer": "CgA="}`, `{"request": "AQ==", "answer": "//8="}`, `{"request": null}`, `7`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		r := receipt{answers: store.NewTable[keptAnswer](kept{value: value}, "answers"), op: "migrate", id: "r-1", digest: []byte{1}}
		version, err := r.find(t.Context(), new(godwitv1.CreateMigrationResponse))
		code := fleet.CodeOf(err)
		if (version == 1) != (err == nil) || err != nil && code != fleet.Internal && code != fleet.Conflict {
			t.Errorf("version %d, %v", version, err)
		}
	})
}

// kept has one value under every key.
type kept struct {
	store.Records
	value []byte
}

func (k kept) Get(_ context.Context, key string) (store.Record, error) {
	return store.Record{Key: key, Value: k.value, Version: 1}, nil
}

// FuzzTables puts anything in the place of the records that the mirror does not
// hold: what is read can be stored again.
func FuzzTables(f *testing.F) {
	for _, seed := range []string{
		`{"grace": -1, "sequence": 1e99}`, `{"vm": "web1", "port": "net0"}`, `{"network": 7}`, `{"uses": -1}`, `{"claims": {"u1": {"memory": "1e400"}}}`, `null`, `[`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		tables := newTables(nil)
		checkDecoded(t, tables.stops, value)
		checkDecoded(t, tables.addresses, value)
		checkDecoded(t, tables.vnis, value)
		checkDecoded(t, tables.vlans, value)
		checkDecoded(t, tables.tokens, value)
		checkDecoded(t, tables.ledgers, value)
	})
}

func checkDecoded[T any](t *testing.T, table store.Table[T], value []byte) {
	t.Helper()
	entry, err := table.Decode(store.Record{Key: table.Key("x"), Value: value, Version: 1})
	if err != nil {
		if fleet.CodeOf(err) != fleet.Internal {
			t.Errorf("it is refused with %v", err)
		}
		return
	}
	checkStored(t, entry.Value)
}
