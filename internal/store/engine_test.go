package store_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

const (
	testQuota = 16 * 1024 * 1024
	leaderTTL = 2 * time.Second
)

// engines are the two ways to have a store; every test of conformance runs
// against both.
var engines = []struct {
	name string
	open func(testing.TB) *store.Store
}{
	{"embedded", func(tb testing.TB) *store.Store { return open(tb, embeddedConfig(tb.TempDir())) }},
	{"external", func(tb testing.TB) *store.Store { return open(tb, startCluster(tb).config()) }},
}

func embeddedConfig(dir string) store.Config {
	return store.Config{Dir: dir, Quota: fleet.Bytes(testQuota), LeaderTTL: leaderTTL}
}

// runHolder is a process that opens the store at a folder or an address,
// leads on "leader" and then holds on until it is killed.
func runHolder(dir, address string) error {
	config := store.Config{LeaderTTL: leaderTTL, Endpoints: []string{"http://" + address}}
	if dir != "" {
		config = embeddedConfig(dir)
	}
	return hold(config)
}

func hold(config store.Config) error {
	ctx := context.Background()
	s, err := store.Open(ctx, config)
	if err != nil {
		return err
	}
	leader, err := s.Campaign(ctx, "leader", "holder")
	if err != nil {
		return err
	}
	version, err := s.Commit(ctx, store.If(leader.Held()), store.Put("written", []byte("by holder")))
	if err != nil {
		return err
	}
	fmt.Println("version", version)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return s.Close()
}
