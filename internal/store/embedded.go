package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

const (
	// etcd preallocates its log in segments of 64 MB and always keeps the
	// next one ready, so a new folder takes two of them at once.
	minFreeNew = 192 * fleet.MiB
	// minFree is left on the disk by Commit: room for one more log segment
	// and for the database to grow, because etcd cannot survive a failed
	// write to either.
	minFree = 96 * fleet.MiB
	// minFreeEnding is the part of it that no Commit may use: that log
	// segment, and the database grows by steps of 16 MB.
	minFreeEnding = 80 * fleet.MiB

	startTimeout = 30 * time.Second
	memberName   = "godwit"
	// A single member sends no heartbeats; short ticks only make it elect
	// itself sooner after a start (within 200 ms instead of 2 s).
	tickMillis     = 20
	electionMillis = 100
)

// embedded is the server inside this process.
type embedded struct {
	dir    string
	lock   *os.File
	server *embed.Etcd
	fatal  *fatalHook
}

func openEmbedded(ctx context.Context, config Config) (*Store, error) {
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return nil, openFailed(fleet.Failed, config.Dir, "cannot make the folder", "", err)
	}
	lock, err := lockFolder(config.Dir)
	if err != nil {
		return nil, err
	}
	e := &embedded{dir: config.Dir, lock: lock, fatal: newFatalHook()}
	if err := e.start(ctx, config); err != nil {
		_ = e.close()
		return nil, err
	}
	s := &Store{config: config, embedded: e, client: v3client.New(e.server.Server), failed: e.fatal.failed, full: make(chan struct{}, 1)}
	if err := s.dropOldLeases(ctx); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// lockFolder takes the folder for this process. etcd has locks of its own,
// but waits for them for ever.
func lockFolder(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, openFailed(fleet.Failed, dir, "cannot open the lock file", "", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return lock, nil
	}
	_ = lock.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, openFailed(fleet.Conflict, dir, "another process is using this folder",
			"stop the other godwit server, or give this one a folder of its own", nil)
	}
	return nil, openFailed(fleet.Failed, dir, "cannot lock the folder", "", err)
}

// start runs the server and returns when it can commit. A Fatal of etcd
// blocks its goroutine for good (see fatalHook), hence the separate one here.
func (e *embedded) start(ctx context.Context, config Config) error {
	if err := checkFreshSpace(e.dir); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	type result struct {
		server *embed.Etcd
		err    error
	}
	started := make(chan result, 1)
	go func() {
		defer func() {
			if cause := recover(); cause != nil {
				started <- result{err: fmt.Errorf("etcd panicked: %v", cause)}
			}
		}()
		server, err := embed.StartEtcd(e.embedConfig(config))
		started <- result{server, err}
	}()
	const hint = "if the folder was damaged, move it away and restore a backup"
	select {
	case r := <-started:
		if r.err != nil {
			return openFailed(fleet.Failed, e.dir, "the embedded etcd did not start", hint, r.err)
		}
		e.server = r.server
	case <-e.fatal.failed:
		return openFailed(fleet.Failed, e.dir, "the embedded etcd did not start", hint, e.fatal.cause())
	}
	select {
	case <-e.server.Server.ReadyNotify():
		return nil
	case <-e.fatal.failed:
		return openFailed(fleet.Failed, e.dir, "the embedded etcd did not start", hint, e.fatal.cause())
	case <-ctx.Done():
		return openFailed(fleet.Deadline, e.dir, "the embedded etcd was not ready in time", hint, ctx.Err())
	}
}

// embedConfig is tuned for the latency of a lone Commit on one member.
func (e *embedded) embedConfig(config Config) *embed.Config {
	c := embed.NewConfig()
	c.Name = memberName
	c.Dir = filepath.Join(e.dir, "etcd")
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(bridgeLogger(config.Logger, e.fatal))
	// No listeners: any process on this host could otherwise read the CA's
	// key and rewrite who owns which VM. The URL is only the member's name.
	nominal := url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	c.ListenPeerUrls, c.ListenClientUrls = nil, nil
	c.AdvertisePeerUrls = []url.URL{nominal}
	c.AdvertiseClientUrls = []url.URL{nominal}
	c.InitialCluster = c.InitialClusterFromName(memberName)
	c.TickMs, c.ElectionMs = tickMillis, electionMillis
	// The log makes a Commit durable; the database only follows it. Writing
	// the database back less often keeps its syncs out of a Commit's way.
	c.BackendBatchInterval = time.Second
	c.QuotaBackendBytes = int64(config.Quota)
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = "1h"
	c.WarningApplyDuration = time.Second
	c.WarningUnaryRequestDuration = time.Second
	return c
}

// close stops the server and frees the folder. After a failure neither is
// possible: etcd's goroutines stand still and hold its files.
func (e *embedded) close() error {
	if e.fatal.cause() != nil {
		return nil
	}
	if e.server != nil {
		e.server.Close()
		e.server = nil
	}
	return e.lock.Close()
}

// dropOldLeases frees the leader keys of the process before this one. The
// folder's lock proves that it is gone, so nobody has to wait for them to end.
func (s *Store) dropOldLeases(ctx context.Context) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	leases, err := s.client.Leases(ctx)
	if err != nil {
		return translate(err, "open store", "leases")
	}
	for _, lease := range leases.Leases {
		if _, err := s.client.Revoke(ctx, lease.ID); err != nil {
			return translate(err, "open store", "leases")
		}
	}
	return nil
}

// checkFreshSpace refuses to begin a new folder on a disk that cannot hold it.
func checkFreshSpace(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "etcd", "member", "wal")); err == nil {
		return nil
	}
	free, err := freeSpace(dir)
	if err != nil {
		return openFailed(fleet.Failed, dir, "cannot ask for the free space", "", err)
	}
	if free >= minFreeNew {
		return nil
	}
	return openFailed(fleet.Exhausted, dir,
		fmt.Sprintf("the disk has %v free, a new store needs %v", free, minFreeNew),
		"free some space or choose a folder on another disk", nil)
}

// room reports an error when the disk has less than reserve free. It costs one statfs,
// under a microsecond.
func (e *embedded) room(reserve fleet.Bytes) error {
	free, err := freeSpace(e.dir)
	if err != nil || free >= reserve {
		return nil // an unreadable figure is no reason to refuse
	}
	return &fleet.Error{
		Code: fleet.Exhausted, Op: "commit", Subject: "store " + e.dir,
		Cause: fmt.Sprintf("its disk has %v free and %v are kept in reserve", free, reserve),
		Hint:  "free some space on that disk; reads and running VMs are not affected",
	}
}

func freeSpace(dir string) (fleet.Bytes, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	return fleet.Bytes(fs.Bavail) * fleet.Bytes(fs.Bsize), nil
}

func openFailed(code fleet.Code, where, cause, hint string, err error) error {
	return &fleet.Error{Code: code, Op: "open store", Subject: where, Cause: cause, Hint: hint, Err: err}
}

// fatalHook stops the goroutine in which etcd found that it cannot go on, and
// tells everybody else. etcd's own reaction is to end the process on the
// spot; this gives the process the chance to end in order.
type fatalHook struct {
	failed chan struct{}
	once   sync.Once
	err    error // written before failed is closed
}

func newFatalHook() *fatalHook { return &fatalHook{failed: make(chan struct{})} }

func (h *fatalHook) cause() error {
	select {
	case <-h.failed:
		return h.err
	default:
		return nil
	}
}
