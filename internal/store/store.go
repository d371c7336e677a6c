package store

import (
	"context"
	"crypto/tls"
	"log/slog"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"godwit.dev/godwit/internal/fleet"
)

// Defaults of Config.
const (
	DefaultPrefix         = "/godwit/"
	DefaultQuota          = 4 * fleet.GiB
	DefaultRequestTimeout = 5 * time.Second
	DefaultLeaderTTL      = 5 * time.Second
)

// Config says where the store is. With Endpoints the store is that external
// etcd cluster; without, it is embedded and keeps its data in Dir.
type Config struct {
	Endpoints []string    // of an external cluster: "https://10.0.0.1:2379"
	TLS       *tls.Config // for https endpoints (see TLSFiles); nil for the system's authorities and no certificate of ours
	Insecure  bool        // allows http endpoints on other machines: who listens on the way reads every secret

	Dir   string      // folder of the embedded server; made if it is missing
	Quota fleet.Bytes // largest size of the embedded database; 0 for DefaultQuota

	Prefix         string        // before every key; "" for DefaultPrefix
	RequestTimeout time.Duration // bound of each call on top of its context; 0 for DefaultRequestTimeout
	LeaderTTL      time.Duration // time after which a dead leader's key is free, at least 2 s; 0 for DefaultLeaderTTL
	Logger         *slog.Logger  // nil discards
}

func (c Config) withDefaults() Config {
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if !strings.HasSuffix(c.Prefix, "/") {
		c.Prefix += "/"
	}
	if c.Quota == 0 {
		c.Quota = DefaultQuota
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = DefaultRequestTimeout
	}
	if c.LeaderTTL == 0 {
		c.LeaderTTL = DefaultLeaderTTL
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Store is an open store. See the package comment for its contract.
type Store struct {
	config   Config
	client   *clientv3.Client
	embedded *embedded     // nil with an external cluster
	failed   chan struct{} // closed when the embedded server stood still
	full     chan struct{} // holds one signal
	closing  sync.Once
	closeErr error
}

// Open opens the store and returns when it answers. Errors are *fleet.Error:
// Invalid for a configuration that cannot work, Conflict when another process
// has the folder, Exhausted when its disk is full, Unavailable when the
// cluster cannot be reached, Unsupported when its version is too old, Denied
// when it refuses us, and Failed when the embedded server cannot start.
func Open(ctx context.Context, config Config) (*Store, error) {
	config = config.withDefaults()
	switch {
	case len(config.Endpoints) > 0 && config.Dir != "":
		return nil, invalidConfig("both a folder and endpoints are given: choose one")
	case len(config.Endpoints) > 0:
		return openExternal(ctx, config)
	case config.Dir != "":
		return openEmbedded(ctx, config)
	}
	return nil, invalidConfig("neither a folder nor endpoints are given")
}

func invalidConfig(cause string) error {
	return &fleet.Error{Code: fleet.Invalid, Op: "open store", Cause: cause}
}

// Failed is closed when the embedded server has stood still after a failed
// write (see the package comment); never with an external cluster.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Full is signalled when a Commit was refused because the database has reached
// its quota; signals that nobody takes become one. It refuses every Commit from
// then on that is not deletions only, until Reclaim.
func (s *Store) Full() <-chan struct{} { return s.full }

func (s *Store) signalFull() {
	select {
	case s.full <- struct{}{}:
	default: // one is waiting already
	}
}

// Embedded reports whether the store runs inside this process.
func (s *Store) Embedded() bool { return s.embedded != nil }

// Close ends watches and leaderships that are still open and, if embedded,
// stops the server and frees its folder. Closing again does nothing more.
func (s *Store) Close() error {
	s.closing.Do(func() {
		// The client's Close reports that its own context was cancelled,
		// which is what Close is for.
		_ = s.client.Close()
		if s.embedded != nil {
			s.closeErr = s.embedded.close()
		}
	})
	return s.closeErr
}

// bound puts the configured limit on one call.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.config.RequestTimeout)
}
