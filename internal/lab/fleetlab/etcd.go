package fleetlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"godwit.dev/godwit/internal/lab/etcdtls"
)

const (
	etcdPort     = "2379"
	etcdPeerPort = "2380"
)

// Etcd is the process of the external etcd's first member, nil if the store is
// embedded.
func (f *Fleet) Etcd() *Process {
	if len(f.etcds) == 0 {
		return nil
	}
	return f.etcds[0]
}

// Etcds are the processes of all members of the external etcd.
func (f *Fleet) Etcds() []*Process { return f.etcds }

func (f *Fleet) etcdDir() string { return filepath.Join(f.Lab.Dir(), "etcd") }

// startEtcd starts the external etcd, each member on a host of its own that it
// may share with a server, and waits until all of them listen. It gives the
// servers' flags for it.
func (f *Fleet) startEtcd(ctx context.Context) (flags []string, err error) {
	if err := os.Mkdir(f.etcdDir(), 0o700); err != nil {
		return nil, err
	}
	var homes []netip.Addr
	var urls, cluster []string
	for i := range f.config.Etcd {
		address := f.Lab.Host(controlName(i)).Addr
		homes = append(homes, address)
		urls = append(urls, "https://"+net.JoinHostPort(address.String(), etcdPort))
		cluster = append(cluster, fmt.Sprintf("%s=https://%s", etcdName(i), net.JoinHostPort(address.String(), etcdPeerPort)))
	}
	files, err := etcdtls.Make(f.etcdDir(), homes...)
	if err != nil {
		return nil, err
	}
	for i := range homes {
		if err := f.startMember(i, files, strings.Join(cluster, ",")); err != nil {
			return nil, err
		}
	}
	if err := f.awaitMembers(ctx); err != nil {
		return nil, err
	}
	return []string{"--etcd", strings.Join(urls, ","),
		"--etcd-ca", files.CA, "--etcd-cert", files.ClientCert, "--etcd-key", files.ClientKey}, nil
}

func etcdName(i int) string { return numbered("etcd", i) }

func (f *Fleet) startMember(i int, files etcdtls.Files, cluster string) error {
	home, name := f.Lab.Host(controlName(i)), etcdName(i)
	p := &Process{
		name: name, home: home.Namespace, log: filepath.Join(f.logDir(), name+".log"),
		args: []string{f.config.EtcdProgram, "--listen", net.JoinHostPort(home.Addr.String(), etcdPort),
			"--data", filepath.Join(f.etcdDir(), name), "--ca", files.CA, "--cert", files.MemberCert, "--key", files.MemberKey},
	}
	if f.config.Etcd > 1 {
		p.args = append(p.args, "--name", name, "--peer", net.JoinHostPort(home.Addr.String(), etcdPeerPort), "--cluster", cluster)
	}
	f.etcds = append(f.etcds, p)
	return p.Start()
}

// awaitMembers waits until each member can be connected to.
func (f *Fleet) awaitMembers(ctx context.Context) error {
	for i, member := range f.etcds {
		home := f.Lab.Host(controlName(i))
		err := f.await(ctx, "etcd to listen", func(ctx context.Context) (bool, error) {
			conn, err := home.DialContext(ctx, "tcp", net.JoinHostPort(home.Addr.String(), etcdPort))
			if err != nil {
				return false, nil // not yet
			}
			return true, conn.Close()
		}, member)
		if err != nil {
			return err
		}
	}
	return nil
}

// RestoreEtcd stops all members, puts a snapshot in the place of their data, as
// a cluster with a token of its own, and starts them. The servers must not run.
func (f *Fleet) RestoreEtcd(ctx context.Context, snapshot, token string) error {
	for i, member := range f.etcds {
		data := filepath.Join(f.etcdDir(), etcdName(i))
		if err := errors.Join(member.Stop(), os.Rename(data, data+".old")); err != nil {
			return err
		}
		args := append(slices.Clone(member.args[1:]), "--restore", snapshot, "--token", token)
		if text, err := member.home.Command(ctx, member.args[0], args...).CombinedOutput(); err != nil {
			return fmt.Errorf("restore %s: %w: %s", etcdName(i), err, text)
		}
	}
	for _, member := range f.etcds {
		if err := member.Start(); err != nil {
			return err
		}
	}
	return f.awaitMembers(ctx)
}
