package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"godwit.dev/godwit/internal/fleet"
)

// Oldest etcd that is supported. Older ones have known defects in
// linearizable reads and leases, and an API that ours does not match.
const minMajor, minMinor = 3, 5

func openExternal(ctx context.Context, config Config) (*Store, error) {
	if err := config.checkEndpoints(); err != nil {
		return nil, err
	}
	where := strings.Join(config.Endpoints, ",")
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            config.Endpoints,
		TLS:                  config.TLS,
		DialTimeout:          config.RequestTimeout,
		DialKeepAliveTime:    5 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		Logger:               bridgeLogger(config.Logger, nil),
	})
	if err != nil {
		return nil, openFailed(fleet.Invalid, where, "these are no endpoints of an etcd cluster", endpointHint, err)
	}
	s := &Store{config: config, client: client, failed: make(chan struct{}), full: make(chan struct{}, 1)}
	if err := s.checkCluster(ctx, where); err != nil {
		_ = client.Close()
		return nil, err
	}
	return s, nil
}

// checkCluster asks every endpoint who it is. One answer is enough to go on,
// but all that answer must be of one cluster and of a version we know.
func (s *Store) checkCluster(ctx context.Context, where string) error {
	var cluster uint64
	var last error
	var lastEndpoint string
	for _, endpoint := range s.config.Endpoints {
		status, err := s.status(ctx, endpoint)
		if err != nil {
			last, lastEndpoint = err, endpoint
			continue
		}
		if !supported(status.Version) {
			return openFailed(fleet.Unsupported, endpoint, "this etcd is version "+status.Version,
				fmt.Sprintf("use etcd %d.%d or newer", minMajor, minMinor), nil)
		}
		id := status.Header.GetClusterId()
		if cluster != 0 && id != cluster {
			return openFailed(fleet.Invalid, where, "these endpoints belong to different clusters",
				"name the members of one cluster only", nil)
		}
		cluster = id
	}
	if cluster != 0 {
		return nil
	}
	if code := codeOf(last); code == fleet.Denied {
		return translate(last, "open store", where)
	}
	if found := s.diagnose(ctx, lastEndpoint); found != nil {
		last = found
	}
	return openFailed(fleet.Unavailable, where, "no endpoint of the etcd cluster answers",
		"check that etcd runs, the addresses and the certificates", last)
}

func (s *Store) status(ctx context.Context, endpoint string) (*clientv3.StatusResponse, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.client.Status(ctx, endpoint)
}

func supported(version string) bool {
	majorText, rest, _ := strings.Cut(version, ".")
	minorText, _, _ := strings.Cut(rest, ".")
	major, errMajor := strconv.Atoi(majorText)
	minor, errMinor := strconv.Atoi(minorText)
	return errMajor == nil && errMinor == nil && major == minMajor && minor >= minMinor
}
