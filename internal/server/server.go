package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/leases"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/store"
)

// Defaults of Config.
const (
	DefaultListen    = "0.0.0.0:7443"
	DefaultSocket    = "/run/godwit/server.sock"
	DefaultHeartbeat = 2 * time.Second
)

// Config is what a server needs. Store and DataDir have no default.
type Config struct {
	Store   *store.Store // open; the caller closes it after Run
	DataDir string       // gets the folders "server" and "admin" with their certificates
	Logger  *slog.Logger // nil discards

	Listen    string        // address of the TLS listener; "" for DefaultListen
	Socket    string        // path of the Unix socket; "" for DefaultSocket
	Names     []string      // DNS names and IP addresses for the server's certificate
	Heartbeat time.Duration // of sessions; a host is down after three; 0 for DefaultHeartbeat

	// Replicas says that other servers may share the store. Of them one is
	// elected to lead; this one reaches it, and is reached, at URLs like
	// Advertise: "https://10.0.0.1:7443". Without, this server always leads.
	Replicas  bool
	Advertise string // "" for a URL made of Names and the listener's address

	KeepFor  time.Duration // how long records of migrations are kept after their end; 0 for DefaultKeepFor
	KeepSize fleet.Bytes   // what all of them may take before the oldest go; 0 for DefaultKeepSize
	Export   string        // path of a file that gets the final records as JSON lines; "" for none

	// DialHost connects to a host's agent; nil is the usual way.
	DialHost func(ctx context.Context, network, address string) (net.Conn, error)
}

func (c Config) withDefaults() Config {
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	if c.Socket == "" {
		c.Socket = DefaultSocket
	}
	if c.Heartbeat <= 0 {
		c.Heartbeat = DefaultHeartbeat
	}
	if c.KeepFor <= 0 {
		c.KeepFor = DefaultKeepFor
	}
	if c.KeepSize == 0 {
		c.KeepSize = DefaultKeepSize
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Server is the control plane.
type Server struct {
	config      Config
	log         *slog.Logger
	tables      tables
	authority   *pki.Authority
	certificate *pki.Keeper
	admin       *pki.Keeper

	leader     *leader
	recovery   *recovery
	hub        *hub
	mirror     *mirror
	addresses  *addressPusher
	lifecycle  *lifecycle.Lifecycle
	migrations *reconciler
	foreseer   *foreseer
	agents     hostAgents
	leases     *leases.Book

	// admission orders what takes addresses and capacity, so that the calls
	// to one server do not conflict with each other. Other servers are held
	// off by the conditions of the commits.
	admission sync.Mutex

	secure net.Listener
	socket net.Listener
}

// New prepares a server: it makes the fleet's authority if there is none,
// issues the server's and the administrator's certificates and opens the
// listeners. Run must follow; it closes them.
func New(ctx context.Context, config Config) (*Server, error) {
	config = config.withDefaults()
	if config.Store == nil || config.DataDir == "" {
		return nil, &fleet.Error{Code: fleet.Invalid, Op: "start server", Cause: "a store and a data folder must be given"}
	}
	s := &Server{config: config, log: config.Logger, tables: newTables(config.Store), hub: newHub(), recovery: newRecovery()}
	s.mirror = newMirror(s.tables, s.log)
	s.addresses = newAddressPusher(s.mirror, s.hub)
	s.lifecycle = newLifecycle(s.tables, s.mirror, s.hub, s.log)
	s.leases = s.newLeases()
	s.lifecycle.Volumes = newVolumeStarts(s.leases, s.lifecycle)
	s.lifecycle.Hardware = hardware{s.tables, s.leases}
	s.mirror.changed = s.addresses.Changed
	s.mirror.vmChanged = func(name fleet.VMName) { s.lifecycle.Changed(name) }
	s.foreseer = &foreseer{meter: hostMeter{s}, tables: s.tables, mirror: s.mirror, lessons: newLessons()}
	s.migrations = newReconciler(s.tables, s.newLeasing(), s.addresses, s.hub.connected, s.foreseer, s.log)
	s.migrations.Leases = s.leases
	s.migrations.Stand()
	s.mirror.migrationChanged = func(entry store.Entry[migration.Migration], wasOver bool) {
		s.foreseer.lessons.learn(entry.Value)
		s.migrations.Changed(entry)
		if entry.Value.Over() {
			s.lifecycle.Changed(entry.Value.VM)
		}
		if entry.Value.Over() && !wasOver {
			s.hearAgain(entry.Value)
		}
	}
	if err := s.checkExport(); err != nil {
		return nil, err
	}
	s.reclaimAtStart(ctx)
	var err error
	if s.authority, err = openAuthority(ctx, s.tables); err != nil {
		return nil, err
	}
	if err := s.leases.Open(ctx); err != nil {
		return nil, err
	}
	if err := s.openKeepers(); err != nil {
		return nil, err
	}
	if err := s.listen(ctx); err != nil {
		return nil, err
	}
	s.agents = hostAgents{keeper: s.certificate, dial: config.DialHost, byHost: map[fleet.HostName]*hostAgent{}}
	s.leader = newLeader(s.advertised())
	s.mirror.leaderChanged = s.leader.noticed
	return s, nil
}

// advertised is the URL at which others reach this server.
func (s *Server) advertised() string {
	if s.config.Advertise != "" {
		return s.config.Advertise
	}
	host, port, _ := net.SplitHostPort(s.Addr().String()) // a listener's address is well formed
	if ip := net.ParseIP(host); ip.IsUnspecified() {
		host, _ = os.Hostname()
		if len(s.config.Names) > 0 {
			host = s.config.Names[0]
		}
	}
	return "https://" + net.JoinHostPort(host, port)
}

// Addr is where the TLS listener listens.
func (s *Server) Addr() net.Addr { return s.secure.Addr() }

// Run serves until ctx ends or something fails that does not mend itself. It
// returns nil after ctx has ended, when all sessions and calls are over.
func (s *Server) Run(ctx context.Context) error {
	defer s.closeListeners()
	revision, err := s.mirror.load(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.mirror.follow(ctx, revision) })
	group.Go(func() error { s.migrations.Follow(ctx); return nil })
	group.Go(func() error { return s.lead(ctx) })
	group.Go(func() error { s.keepRoom(ctx); return nil })
	group.Go(func() error { return s.certificate.Run(ctx) })
	group.Go(func() error { return s.admin.Run(ctx) })
	group.Go(func() error { return s.serve(ctx) })
	group.Go(func() error {
		select {
		case <-s.config.Store.Failed():
			return &fleet.Error{
				Code: fleet.Failed, Op: "serve", Cause: "the store has stopped after a failed write to its disk",
				Hint: "look after the disk, then start the server again; nothing that was acknowledged is lost",
			}
		case <-ctx.Done():
			return nil
		}
	})
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
