package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// conforms runs a test against both engines.
func conforms(t *testing.T, test func(*testing.T, *store.Store)) {
	t.Helper()
	for _, engine := range engines {
		t.Run(engine.name, func(t *testing.T) {
			t.Parallel()
			test(t, engine.open(t))
		})
	}
}

func commit(t *testing.T, s *store.Store, conditions []store.Condition, ops ...store.Op) int64 {
	t.Helper()
	version, err := s.Commit(t.Context(), conditions, ops...)
	if err != nil {
		t.Fatal(err)
	}
	return version
}

func wantCode(t *testing.T, err error, code fleet.Code) {
	t.Helper()
	if fleet.CodeOf(err) != code {
		t.Fatalf("error %v has code %q, want %q", err, fleet.CodeOf(err), code)
	}
}

func TestRecords(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		_, err := s.Get(t.Context(), "a")
		wantCode(t, err, fleet.NotFound)
		first := commit(t, s, nil, store.Put("a", []byte("1")), store.Put("b", []byte("2")))
		for key, value := range map[string]string{"a": "1", "b": "2"} {
			record, err := s.Get(t.Context(), key)
			if err != nil || string(record.Value) != value || record.Version != first || record.Key != key {
				t.Errorf("%s: %+v, %v", key, record, err)
			}
		}
		second := commit(t, s, store.If(store.At("a", first)), store.Delete("a"), store.Put("c", nil))
		if second <= first {
			t.Errorf("revision %d after %d", second, first)
		}
		_, err = s.Get(t.Context(), "a")
		wantCode(t, err, fleet.NotFound)
		commit(t, s, nil, store.Delete("never there"))
	})
}

func TestConditions(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		version := commit(t, s, nil, store.Put("there", []byte("x")))
		for _, test := range []struct {
			name      string
			condition store.Condition
			cause     string // "" if it holds
		}{
			{"at", store.At("there", version), ""},
			{"at another version", store.At("there", version+1), fmt.Sprintf("at version %d, not %d", version, version+1)},
			{"at, but gone", store.At("gone", version), "was deleted"},
			{"at none", store.At("gone", 0), ""},
			{"absent", store.Absent("gone"), ""},
			{"absent, but there", store.Absent("there"), "exists, at version"},
			{"present", store.Present("there"), ""},
			{"present, but gone", store.Present("gone"), "does not exist"},
		} {
			marker := "marker " + test.name
			_, err := s.Commit(t.Context(), store.If(store.Present("there"), test.condition), store.Put(marker, nil))
			_, readErr := s.Get(t.Context(), marker)
			if test.cause == "" {
				if err != nil || readErr != nil {
					t.Errorf("%s: %v, %v", test.name, err, readErr)
				}
				continue
			}
			wantCode(t, err, fleet.Conflict)
			wantCode(t, readErr, fleet.NotFound)
			if !strings.Contains(err.Error(), test.cause) || errors.Is(err, store.ErrOutcomeUnknown) {
				t.Errorf("%s: %v, want %q", test.name, err, test.cause)
			}
		}
	})
}

func TestCommitRefusesWhatCannotWork(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		many := make([]store.Op, store.MaxOps+1)
		for i := range many {
			many[i] = store.Put(fmt.Sprint(i), nil)
		}
		large := bytes.Repeat([]byte("x"), int(store.MaxValue)+1)
		unmarshalable := store.NewTable[chan int](s, "t").Put("x", make(chan int))
		for name, ops := range map[string][]store.Op{
			"no change":     {},
			"too many":      many,
			"empty key":     {store.Put("", nil)},
			"absolute key":  {store.Put("/a", nil)},
			"zero in key":   {store.Delete("a\x00")},
			"long key":      {store.Put(strings.Repeat("x", 600), nil)},
			"too large":     {store.Put("a", large)},
			"one key twice": {store.Put("a", nil), store.Put("a", nil)},
			"no JSON":       {unmarshalable},
		} {
			_, err := s.Commit(t.Context(), nil, ops...)
			if fleet.CodeOf(err) != fleet.Invalid || errors.Is(err, store.ErrOutcomeUnknown) {
				t.Errorf("%s: %v", name, err)
			}
		}
		commit(t, s, nil, many[:store.MaxOps]...)
		commit(t, s, nil, store.Put("a", large[:store.MaxValue]))
	})
}

// Of fifty who change the same version exactly one wins, and every loser is
// told that nothing happened.
func TestOnlyOneOfFiftyWins(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		version := commit(t, s, nil, store.Put("owner", []byte("nobody")))
		for round := range 4 {
			var won atomic.Int64
			var winner atomic.Value
			var wait sync.WaitGroup
			for i := range 50 {
				wait.Go(func() {
					name := fmt.Sprint(round, "/", i)
					next, err := s.Commit(t.Context(), store.If(store.At("owner", version)),
						store.Put("owner", []byte(name)), store.Put("won "+name, nil))
					switch {
					case err == nil:
						won.Add(1)
						winner.Store(store.Record{Key: "owner", Value: []byte(name), Version: next})
					case fleet.CodeOf(err) != fleet.Conflict:
						t.Error(err)
					}
				})
			}
			wait.Wait()
			if won.Load() != 1 {
				t.Fatalf("%d winners", won.Load())
			}
			record, err := s.Get(t.Context(), "owner")
			if err != nil || fmt.Sprint(record) != fmt.Sprint(winner.Load()) {
				t.Fatalf("the store has %v, the winner %v, %v", record, winner.Load(), err)
			}
			version = record.Version
			if marks, _, err := s.All(t.Context(), fmt.Sprint("won ", round, "/")); err != nil || len(marks) != 1 {
				t.Fatalf("%d commits left marks, %v", len(marks), err)
			}
		}
	})
}

func TestOutcomeUnknownOnlyWhenItWasSent(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		over, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.Commit(over, nil, store.Put("a", nil))
		wantCode(t, err, fleet.Unavailable)
		if errors.Is(err, store.ErrOutcomeUnknown) {
			t.Errorf("nothing was sent: %v", err)
		}
		_, err = s.Get(t.Context(), "a")
		wantCode(t, err, fleet.NotFound)
		_, err = s.Get(over, "a")
		wantCode(t, err, fleet.Unavailable)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the context's error is lost: %v", err)
		}
	})
}

func TestPages(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		const n = 25
		for i := range n {
			commit(t, s, nil, store.Put(fmt.Sprintf("vms/%02d", i), fmt.Append(nil, i)))
		}
		commit(t, s, nil, store.Put("vmsother/1", nil), store.Put("vlan/1", nil))
		for _, limit := range []int{1, 7, 24, 25, 26, 0} {
			var keys []string
			page := store.Page{Limit: limit}
			for {
				records, next, revision, err := s.List(t.Context(), "vms/", page)
				if err != nil {
					t.Fatal(err)
				}
				for _, record := range records {
					keys = append(keys, record.Key)
				}
				if page.Revision == 0 {
					// What comes later does not show in the following pages.
					late := commit(t, s, nil, store.Put("vms/99", nil))
					commit(t, s, store.If(store.At("vms/99", late)), store.Delete("vms/99"), store.Put("vms/24x", nil))
				}
				if next == "" {
					break
				}
				page.After, page.Revision = next, revision
			}
			if len(keys) != n || keys[0] != "vms/00" || keys[n-1] != "vms/24" {
				t.Errorf("limit %d: %v", limit, keys)
			}
			commit(t, s, nil, store.Delete("vms/24x"))
		}
		_, _, old, err := s.List(t.Context(), "vms/", store.Page{Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		commit(t, s, nil, store.Put("vms/00", nil))
		if err := s.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, _, _, err = s.List(t.Context(), "vms/", store.Page{Revision: old})
		if !errors.Is(err, store.ErrCompacted) {
			t.Errorf("a compacted page: %v", err)
		}
	})
}

func TestTable(t *testing.T) {
	type vm struct {
		Host  string `json:"host"`
		Epoch int    `json:"epoch"`
	}
	conforms(t, func(t *testing.T, s *store.Store) {
		vms := store.NewTable[vm](s, "vms")
		version := commit(t, s, store.If(vms.Absent("a")), vms.Put("a", vm{"h1", 1}), vms.Put("b", vm{"h2", 1}))
		entry, err := vms.Get(t.Context(), "a")
		if err != nil || entry != (store.Entry[vm]{Name: "a", Value: vm{"h1", 1}, Version: version}) {
			t.Errorf("%+v, %v", entry, err)
		}
		page, next, revision, err := vms.List(t.Context(), store.Page{Limit: 1})
		if err != nil || len(page) != 1 || next != "a" {
			t.Fatalf("%+v, %q, %v", page, next, err)
		}
		page, next, _, err = vms.List(t.Context(), store.Page{After: next, Revision: revision})
		if err != nil || len(page) != 1 || page[0].Name != "b" || next != "" {
			t.Errorf("%+v, %q, %v", page, next, err)
		}
		version = commit(t, s, store.If(vms.At("a", version), vms.Present("b")), vms.Put("a", vm{"h3", 2}), vms.Delete("b"))
		all, revision, err := vms.All(t.Context())
		if err != nil || len(all) != 1 || all[0].Value.Host != "h3" || all[0].Version != version || revision < version {
			t.Errorf("%+v, %d, %v", all, revision, err)
		}
		commit(t, s, nil, store.Put(vms.Key("damaged"), []byte("{")))
		_, err = vms.Get(t.Context(), "damaged")
		wantCode(t, err, fleet.Internal)
		_, _, err = vms.All(t.Context())
		wantCode(t, err, fleet.Internal)
	})
}

func TestBackup(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		commit(t, s, nil, store.Put("needle", []byte("in the haystack")))
		var backup bytes.Buffer
		if err := s.Backup(t.Context(), &backup); err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(backup.Bytes(), []byte("in the haystack")) {
			t.Errorf("%d bytes without the record", backup.Len())
		}
		if err := s.Backup(t.Context(), fullWriter{}); !errors.Is(err, errFull) {
			t.Errorf("a failing writer: %v", err)
		}
	})
}

var errFull = errors.New("full")

type fullWriter struct{}

func (fullWriter) Write([]byte) (int, error) { return 0, errFull }

// A full database refuses to grow, still reads, and can be emptied.
func TestQuota(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		atQuota := func(want bool) {
			t.Helper()
			if got, err := s.AtQuota(t.Context()); err != nil || got != want {
				t.Errorf("at its quota: %v, %v; want %v", got, err, want)
			}
		}
		atQuota(false)
		block := make([]byte, 512*1024)
		var err error
		written := 0
		// etcd looks at the size as of its last write to the file, up to a second ago.
		for ; err == nil && written < 1000; written++ {
			_, err = s.Commit(t.Context(), nil, store.Put(fmt.Sprint("fill/", written), block))
		}
		wantCode(t, err, fleet.Exhausted)
		// etcd may have applied the commit that it refuses for its size.
		if fleet.HintOf(err) == "" || !errors.Is(err, store.ErrOutcomeUnknown) {
			t.Errorf("error %v, hint %q", err, fleet.HintOf(err))
		}
		if hint := fleet.HintOf(err); strings.Contains(hint, "Reclaim") {
			t.Errorf("the hint is to call a function: %q", hint)
		}
		select {
		case <-s.Full():
		default:
			t.Error("nobody is told that it is full")
		}
		atQuota(true)
		if _, err := s.Get(t.Context(), "fill/0"); err != nil {
			t.Errorf("reading from a full store: %v", err)
		}
		filled, _, err := s.All(t.Context(), "fill/")
		if err != nil || len(filled) != written && len(filled) != written-1 {
			t.Fatalf("%d records after %d commits, %v", len(filled), written, err)
		}
		for _, record := range filled {
			commit(t, s, nil, store.Delete(record.Key))
		}
		_, err = s.Commit(t.Context(), nil, store.Put("small", nil))
		wantCode(t, err, fleet.Exhausted)
		if err := s.Reclaim(t.Context()); err != nil {
			t.Fatal(err)
		}
		atQuota(false)
		commit(t, s, nil, store.Put("small", nil))
	})
}
