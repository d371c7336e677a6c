// Command etcd is a member of an etcd for tests, built on the server of etcd's
// own Go module, so that a test of an external store needs nothing installed.
// It serves clients and the other members over TLS only and asks each for a
// certificate, as an external cluster of Godwit's should. It ends with SIGTERM
// or SIGINT. With --restore it makes a member's data of a snapshot, as etcdutl does.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Short ticks let a lone member elect itself at once after a start. Members of
// a cluster that share a busy machine must not take each other for dead.
const (
	tickMillis            = 20
	electionMillis        = 100
	clusterTickMillis     = 100
	clusterElectionMillis = 1000
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	c := embed.NewConfig()
	listen := flag.String("listen", "", "`address` for clients, HOST:PORT")
	peer := flag.String("peer", "", "`address` for the other members, HOST:PORT; none without")
	cluster := flag.String("cluster", "", "all members, NAME=https://HOST:PORT with commas between")
	flag.StringVar(&c.Name, "name", c.Name, "`name` of this member")
	flag.StringVar(&c.Dir, "data", "", "`folder` of the data")
	restore := flag.String("restore", "", "make the data of the snapshot in this `file`, and end")
	flag.StringVar(&c.InitialClusterToken, "token", c.InitialClusterToken, "`token` of the restored cluster")
	flag.StringVar(&c.ClientTLSInfo.TrustedCAFile, "ca", "", "`file` with the authority of the clients")
	flag.StringVar(&c.ClientTLSInfo.CertFile, "cert", "", "`file` with the member's certificate")
	flag.StringVar(&c.ClientTLSInfo.KeyFile, "key", "", "`file` with the member's key")
	flag.Parse()
	c.ClientTLSInfo.ClientCertAuth = true
	c.LogLevel = "warn"
	c.ListenClientUrls = []url.URL{{Scheme: "https", Host: *listen}}
	c.AdvertiseClientUrls = c.ListenClientUrls
	if *peer == "" {
		c.ListenPeerUrls = nil
		c.TickMs, c.ElectionMs = tickMillis, electionMillis
	} else {
		c.ListenPeerUrls = []url.URL{{Scheme: "https", Host: *peer}}
		c.AdvertisePeerUrls = c.ListenPeerUrls
		c.PeerTLSInfo = c.ClientTLSInfo
		c.InitialCluster = *cluster
		c.TickMs, c.ElectionMs = clusterTickMillis, clusterElectionMillis
	}
	if *restore != "" {
		return snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
			SnapshotPath: *restore, OutputDataDir: c.Dir, Name: c.Name, PeerURLs: []string{c.AdvertisePeerUrls[0].String()},
			InitialCluster: c.InitialCluster, InitialClusterToken: c.InitialClusterToken,
		})
	}
	server, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	defer server.Close()
	changed := server.Server.LeaderChangedNotify()
	for {
		if server.Server.Leader() == server.Server.MemberID() {
			fmt.Fprintln(os.Stderr, time.Now().UTC().Format(stamp), "this member leads")
		}
		select {
		case <-changed:
			changed = server.Server.LeaderChangedNotify()
		case err := <-server.Err():
			return err
		case <-server.Server.StopNotify():
			return fmt.Errorf("it has stopped by itself")
		case <-ctx.Done():
			return nil
		}
	}
}

// stamp has a fixed width: who has said last that it leads is found as text.
const stamp = "2006-01-02T15:04:05.000000Z"
