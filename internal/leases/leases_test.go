package leases

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// fakeServer notes what it is asked for.
type fakeServer struct {
	mu    sync.Mutex
	asked []string
	away  bool
	news  chan struct{}
}

func (f *fakeServer) ask(text string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer func() {
		select {
		case f.news <- struct{}{}:
		default:
		}
	}()
	if f.away {
		return &fleet.Error{Code: fleet.Unavailable, Op: "call", Cause: "it is away"}
	}
	f.asked = append(f.asked, text)
	return nil
}

func (f *fakeServer) Grant(_ context.Context, r *godwitv1.GrantLeaseRequest) (*godwitv1.GrantLeaseResponse, error) {
	return &godwitv1.GrantLeaseResponse{}, f.ask("grant " + r.GetVolume() + "@" + strconv.FormatUint(r.GetEpoch(), 10) + " to " + r.GetHost())
}

func (f *fakeServer) Release(_ context.Context, r *godwitv1.ReleaseLeaseRequest) (*godwitv1.ReleaseLeaseResponse, error) {
	text := "release " + r.GetVolume() + "@" + strconv.FormatUint(r.GetEpoch(), 10)
	if r.GetKeyHash() != "" {
		text += " of one grant"
	}
	return &godwitv1.ReleaseLeaseResponse{}, f.ask(text)
}

func (f *fakeServer) Close() {}

// await waits until all of it was asked.
func (f *fakeServer) await(t *testing.T, want ...string) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		f.mu.Lock()
		got := slices.Clone(f.asked)
		f.mu.Unlock()
		slices.Sort(got)
		if slices.Equal(got, want) {
			return
		}
		select {
		case <-f.news:
		case <-limit:
			t.Fatalf("asked was %q, want %q", got, want)
		}
	}
}

func newBook(t *testing.T) (*Book, *fakeServer, *store.Store) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: filepath.Join(t.TempDir(), "store")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	fake := &fakeServer{news: make(chan struct{}, 1)}
	return openBook(t, s, fake), fake, s
}

func openBook(t *testing.T, s *store.Store, fake *fakeServer) *Book {
	t.Helper()
	servers := store.NewTable[fleet.VolumeServer](s, "volumeservers")
	at := netip.MustParseAddrPort("10.0.0.31:1")
	if _, err := s.Commit(t.Context(), nil, servers.Put("v1", fleet.VolumeServer{Name: "v1", NBD: at, Control: at})); err != nil {
		t.Fatal(err)
	}
	b := New(Config{
		Store: s, Servers: servers, Log: slog.New(slog.DiscardHandler),
		Dial: func(fleet.VolumeServer) (VolumeServer, error) { return fake, nil },
	})
	if err := b.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func testVM() fleet.VM {
	return fleet.VM{Name: "web1", UID: "u", Owner: fleet.Owner{Host: "h1", Epoch: 5}, Spec: fleet.VMSpec{Disks: []fleet.Disk{
		{Kind: fleet.DiskVolume, Server: "v1", Volume: "b"}, {Kind: fleet.DiskFile, Path: "/x"}, {Kind: fleet.DiskVolume, Server: "v1", Volume: "a"},
	}}}
}

// Every server of a fleet gives the same key, and another one to each host that is
// to get an epoch.
func TestKeys(t *testing.T) {
	b, fake, s := newBook(t)
	other := openBook(t, s, fake)
	if string(b.Key("u", 5, "")) != string(other.Key("u", 5, "")) {
		t.Error("two servers give two keys")
	}
	seen := map[string]bool{}
	for _, key := range [][]byte{b.Key("u", 5, ""), b.Key("u", 6, ""), b.Key("u", 6, "m-1"), b.Key("u", 6, "m-2"), b.Key("v", 5, "")} {
		seen[string(key)] = true
	}
	if len(seen) != 5 {
		t.Errorf("%d keys for five leases", len(seen))
	}
}

func TestGrant(t *testing.T) {
	b, fake, _ := newBook(t)
	vm := testVM()
	lease := Lease{VM: vm.Name, UID: vm.UID, Epoch: 6, Host: "h2", Migration: "m-1", Volumes: vm.Spec.Volumes()}
	servers, err := b.Grant(t.Context(), lease)
	if err != nil || len(servers) != 1 || servers[0].GetName() != "v1" {
		t.Fatalf("%v, %v", servers, err)
	}
	fake.await(t, "grant a@6 to h2", "grant b@6 to h2")
	fake.away = true
	if _, err := b.Grant(t.Context(), lease); fleet.CodeOf(err) != fleet.Unavailable {
		t.Errorf("while it is away: %v", err)
	}
	lease.Volumes = []fleet.VolumesOf{{Server: "v2", Volumes: []fleet.VolumeName{"a"}}}
	if _, err := b.Grant(t.Context(), lease); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("of a server that nobody knows: %v", err)
	}
}

// What a migration leaves at its end, by how that was.
func TestMigrationEnded(t *testing.T) {
	for name, test := range map[string]struct {
		m    migration.Migration
		want []string
	}{
		"moved":      {migration.Migration{State: migration.Succeeded, Committed: true, TargetRuns: true}, nil},
		"aborted":    {migration.Migration{State: migration.Aborted}, []string{"release a@6 of one grant", "release b@6 of one grant"}},
		"taken back": {migration.Migration{State: migration.Aborted, Committed: true, TakenBack: true}, nil},
		"target gone": {migration.Migration{State: migration.NeedsOperator, Committed: true, TargetGone: true},
			[]string{"release a@5", "release a@6", "release b@5", "release b@6"}},
		"source lost": {migration.Migration{State: migration.Aborted, SourceLost: true},
			[]string{"release a@5", "release a@6 of one grant", "release b@5", "release b@6 of one grant"}},
	} {
		b, fake, s := newBook(t)
		test.m.ID, test.m.Epoch, test.m.Source, test.m.Target = "m-1", 5, "h1", "h2"
		if ops := b.MigrationEnded(testVM(), test.m); len(ops) > 0 {
			if _, err := s.Commit(t.Context(), nil, ops...); err != nil {
				t.Fatal(err)
			}
		}
		b.releaseAll(t.Context())
		slices.Sort(fake.asked)
		if !slices.Equal(fake.asked, test.want) {
			t.Errorf("%s: %q, want %q", name, fake.asked, test.want)
		}
	}
}

// A volume server that is away delays nothing: what it has to be told waits, over
// the end of the server that leads, too.
func TestReleasesWait(t *testing.T) {
	b, fake, s := newBook(t)
	fake.away = true
	if _, err := s.Commit(t.Context(), nil, b.Ended(testVM())...); err != nil {
		t.Fatal(err)
	}
	if _, left := b.releaseAll(t.Context()); !left {
		t.Error("nothing is left while the volume server is away")
	}
	fake.mu.Lock()
	fake.away = false
	fake.mu.Unlock()
	next := openBook(t, s, fake)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); next.Run(ctx) }()
	fake.await(t, "release a@5", "release b@5")
	later := testVM()
	later.UID, later.Owner.Epoch = "w", 7
	revision, err := s.Commit(t.Context(), nil, next.Ended(later)...)
	if err != nil {
		t.Fatal(err)
	}
	fake.await(t, "release a@5", "release a@7", "release b@5", "release b@7")
	for event := range next.releases.Watch(t.Context(), revision).Events() {
		if event.Deleted && next.releases.Name(event.Record) == "w.7" {
			break
		}
	}
	cancel()
	<-done
	if entries, _, err := next.releases.All(t.Context()); err != nil || len(entries) != 0 {
		t.Errorf("left are %v, %v", entries, err)
	}
}

// What a VM that runs has no more is released, each volume of it and each grant, though
// they were disks of one name.
func TestRemoved(t *testing.T) {
	b, fake, s := newBook(t)
	for _, one := range []struct {
		volume fleet.VolumeName
		added  fleet.MigrationID
	}{{"a", ""}, {"b", "change-2"}, {"b", "change-3"}} {
		disk := fleet.Disk{Name: "data", Kind: fleet.DiskVolume, Server: "v1", Volume: one.volume}
		if _, err := s.Commit(t.Context(), nil, b.Removed(testVM(), disk, one.added)); err != nil {
			t.Fatal(err)
		}
	}
	b.releaseAll(t.Context())
	fake.await(t, "release a@5", "release b@5 of one grant", "release b@5 of one grant")
}
