package fleetlab

import (
	"context"
	"net"
	"os"
	"path/filepath"

	"godwit.dev/godwit/internal/lab/etcdtls"
)

const etcdPort = "2379"

// Etcd is the process of the external etcd, nil if the store is embedded.
func (f *Fleet) Etcd() *Process { return f.etcd }

func (f *Fleet) etcdDir() string { return filepath.Join(f.Lab.Dir(), "etcd") }

// startEtcd starts the external etcd beside the server, and waits until it can
// be connected to. It gives the server's flags for it.
func (f *Fleet) startEtcd(ctx context.Context) (flags []string, err error) {
	home := f.Lab.Host(control)
	if err := os.Mkdir(f.etcdDir(), 0o700); err != nil {
		return nil, err
	}
	files, err := etcdtls.Make(f.etcdDir(), home.Addr)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(home.Addr.String(), etcdPort)
	f.etcd = &Process{
		name: "etcd", home: home.Namespace, log: filepath.Join(f.logDir(), "etcd.log"),
		args: []string{f.config.Etcd, "--listen", address, "--data", filepath.Join(f.etcdDir(), "data"),
			"--ca", files.CA, "--cert", files.MemberCert, "--key", files.MemberKey},
	}
	if err := f.etcd.Start(); err != nil {
		return nil, err
	}
	err = f.await(ctx, "etcd to listen", func(ctx context.Context) (bool, error) {
		conn, err := home.DialContext(ctx, "tcp", address)
		if err != nil {
			return false, nil // not yet
		}
		return true, conn.Close()
	}, f.etcd)
	return []string{"--etcd", "https://" + address,
		"--etcd-ca", files.CA, "--etcd-cert", files.ClientCert, "--etcd-key", files.ClientKey}, err
}
