package leases

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// callWithin bounds one call of a volume server.
const callWithin = 5 * time.Second

// VolumeServer is what is asked of a volume server.
type VolumeServer interface {
	Grant(context.Context, *godwitv1.GrantLeaseRequest) (*godwitv1.GrantLeaseResponse, error)
	Release(context.Context, *godwitv1.ReleaseLeaseRequest) (*godwitv1.ReleaseLeaseResponse, error)
	Close()
}

// Config is what leases are given with.
type Config struct {
	Store   store.Records
	Servers store.Table[fleet.VolumeServer] // by name
	Dial    func(fleet.VolumeServer) (VolumeServer, error)
	Log     *slog.Logger
}

// Lease is the right of one instance to the volumes of its VM.
type Lease struct {
	VM        fleet.VMName
	UID       fleet.InstanceUID
	Epoch     fleet.Epoch
	Host      fleet.HostName
	Migration fleet.MigrationID // by which the host has the epoch; "" for a start
	Volumes   []fleet.VolumesOf
}

// Book gives leases and has them released.
type Book struct {
	Config
	releases store.Table[release] // by releaseKey
	secret   []byte               // since Open

	mu      sync.Mutex
	clients map[fleet.VolumeServerName]dialled
}

type dialled struct {
	server fleet.VolumeServer
	client VolumeServer
}

const (
	secretKey   = "volumes"
	secretBytes = 32
)

// New gives the book of a fleet. Open must follow.
func New(config Config) *Book {
	return &Book{
		Config: config, releases: store.NewTable[release](config.Store, "releases"), clients: map[fleet.VolumeServerName]dialled{},
	}
}

// Open reads the fleet's secret. The first server makes it; of two that start at
// once one wins and both use the winner's.
func (b *Book) Open(ctx context.Context) error {
	secrets := store.NewTable[[]byte](b.Store, "secrets")
	for range store.MaxConflicts {
		entry, err := secrets.Get(ctx, secretKey)
		if err == nil {
			b.secret = entry.Value
			return nil
		}
		if fleet.CodeOf(err) != fleet.NotFound {
			return err
		}
		secret := make([]byte, secretBytes)
		_, _ = rand.Read(secret) // never fails since Go 1.24
		_, err = b.Store.Commit(ctx, store.If(secrets.Absent(secretKey)), secrets.Put(secretKey, secret))
		if err != nil && fleet.CodeOf(err) != fleet.Conflict {
			return err
		}
	}
	return &fleet.Error{Code: fleet.Conflict, Op: "open leases", Cause: "the fleet's secret is being changed by somebody else", Hint: "try again"}
}

// Key gives the key of an instance's leases.
func (b *Book) Key(uid fleet.InstanceUID, epoch fleet.Epoch, migration fleet.MigrationID) []byte {
	mac := hmac.New(sha256.New, b.secret)
	fmt.Fprintf(mac, "%s\n%d\n%s", uid, epoch, migration)
	return mac.Sum(nil)
}

// hashOf is what volume servers know of a key; see GrantLeaseRequest.
func hashOf(key []byte) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:])
}

// Grant gives the lease's host the right to connect to its volumes, and where it
// finds them. After an error some may be granted; it can be repeated.
func (b *Book) Grant(ctx context.Context, lease Lease) ([]*godwitv1.VolumeServer, error) {
	servers := make([]*godwitv1.VolumeServer, len(lease.Volumes))
	hash := hashOf(b.Key(lease.UID, lease.Epoch, lease.Migration))
	group, ctx := errgroup.WithContext(ctx)
	for i, of := range lease.Volumes {
		group.Go(func() error {
			return b.ask(ctx, of.Server, func(ctx context.Context, server fleet.VolumeServer, client VolumeServer) error {
				servers[i] = wire.EncodeVolumeServer(server)
				for _, volume := range of.Volumes {
					_, err := client.Grant(ctx, &godwitv1.GrantLeaseRequest{
						Volume: string(volume), Epoch: uint64(lease.Epoch), Host: string(lease.Host), KeyHash: hash,
					})
					if err != nil {
						return failed("grant volume "+string(volume), server, err)
					}
				}
				return nil
			})
		})
	}
	return servers, group.Wait()
}

// Places gives where the volumes of a lease are that was granted before, as Grant does,
// whether their servers answer or not.
func (b *Book) Places(ctx context.Context, lease Lease) (servers []*godwitv1.VolumeServer, err error) {
	for _, of := range lease.Volumes {
		server, err := b.find(ctx, of.Server)
		if err != nil {
			return nil, err
		}
		servers = append(servers, wire.EncodeVolumeServer(server))
	}
	return servers, nil
}

func (b *Book) find(ctx context.Context, name fleet.VolumeServerName) (fleet.VolumeServer, error) {
	entry, err := b.Servers.Get(ctx, string(name))
	if fleet.CodeOf(err) == fleet.NotFound {
		err = &fleet.Error{
			Code: fleet.NotFound, Op: "find", Subject: "volume server " + string(name), Cause: "the fleet has none of that name",
			Hint: "godwit volume server list shows all; one is known once it runs",
		}
	}
	return entry.Value, err
}

// ask runs do with a client of a volume server, for at most callWithin.
func (b *Book) ask(ctx context.Context, name fleet.VolumeServerName, do func(context.Context, fleet.VolumeServer, VolumeServer) error) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	server, err := b.find(ctx, name)
	if err != nil {
		return err
	}
	client, err := b.client(server)
	if err != nil {
		return err
	}
	return do(ctx, server, client)
}

// client gives a client that is kept, and made anew when the server has moved.
func (b *Book) client(server fleet.VolumeServer) (VolumeServer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if kept, ok := b.clients[server.Name]; ok {
		if kept.server == server {
			return kept.client, nil
		}
		kept.client.Close()
	}
	client, err := b.Dial(server)
	if err == nil {
		b.clients[server.Name] = dialled{server, client}
	}
	return client, err
}

// failed says which volume server it was.
func failed(op string, server fleet.VolumeServer, err error) error {
	code := fleet.CodeOf(err)
	if code == fleet.Deadline { // of the call, which may be made again
		code = fleet.Unavailable
	}
	return &fleet.Error{
		Code: code, Op: op, Subject: fmt.Sprintf("of volume server %s", server.Name), Err: err,
		Hint: "see that godwit volume serve runs there, and that volume list names it",
	}
}
