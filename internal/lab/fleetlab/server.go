package fleetlab

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// Server is the first server's process.
func (f *Fleet) Server() *Process { return f.servers[0] }

// Servers are the processes of all servers.
func (f *Fleet) Servers() []*Process { return f.servers }

// APIOf is a client of one server, by its place among Servers.
func (f *Fleet) APIOf(i int) *client.Client { return f.apis[i] }

// SocketPath is where the first server listens for clients outside of the lab.
func (f *Fleet) SocketPath() string { return f.socketPath(0) }

func (f *Fleet) socketPath(i int) string {
	return filepath.Join(f.Lab.Dir(), numbered("server", i)+".sock")
}

// ServerDir is the first server's data folder.
func (f *Fleet) ServerDir() string { return f.serverDir(0) }

func (f *Fleet) serverDir(i int) string { return filepath.Join(f.Lab.Dir(), numbered("server", i)) }

// serverURLs is what an agent is given to find the servers.
func (f *Fleet) serverURLs() string {
	var urls []string
	for i := range f.servers {
		urls = append(urls, "https://"+net.JoinHostPort(f.Lab.Host(controlName(i)).Addr.String(), serverPort))
	}
	return strings.Join(urls, ",")
}

// startServers starts all servers, and waits until each answers.
func (f *Fleet) startServers(ctx context.Context) (err error) {
	var etcd []string
	if f.config.Etcd > 0 {
		if etcd, err = f.startEtcd(ctx); err != nil {
			return err
		}
	}
	for i := range f.config.Servers {
		if err := f.startServer(i, etcd); err != nil {
			return err
		}
		if err := f.AwaitServerOf(ctx, i); err != nil {
			return err
		}
	}
	if f.config.Servers == 1 {
		return nil
	}
	var sockets []string
	for i := range f.servers {
		sockets = append(sockets, "unix://"+f.socketPath(i))
	}
	any, err := client.Dial(client.Config{Server: strings.Join(sockets, ",")})
	if err == nil {
		f.API, f.apis = any, append(f.apis, any)
	}
	return err
}

// Leader waits until one of the servers that run leads, and gives its place
// among Servers.
func (f *Fleet) Leader(ctx context.Context) (leader int, err error) {
	err = f.await(ctx, "a server to lead", func(ctx context.Context) (bool, error) {
		for i, process := range f.servers {
			if process.PID() == 0 {
				continue
			}
			if f.leads(ctx, i) {
				leader = i
				return true, nil
			}
		}
		return false, nil
	})
	return leader, err
}

// leads asks a server, which may hang.
func (f *Fleet) leads(ctx context.Context, i int) bool {
	ctx, cancel := context.WithTimeout(ctx, statusWithin)
	defer cancel()
	status, err := f.apis[i].Server.Status(ctx, &godwitv1.StatusRequest{})
	return err == nil && status.GetLeads()
}

// statusWithin bounds one question to one server.
const statusWithin = time.Second

func (f *Fleet) startServer(i int, etcd []string) error {
	home, name := f.Lab.Host(controlName(i)), numbered("server", i)
	p := &Process{
		name: "the " + name, home: home.Namespace, log: filepath.Join(f.logDir(), name+".log"),
		args: append(slices.Clone(f.config.Wrap), f.config.Binary, "server",
			"--data", f.serverDir(i), "--socket", f.socketPath(i),
			"--listen", net.JoinHostPort("0.0.0.0", serverPort), "--name", home.Addr.String()),
	}
	p.args = append(p.args, etcd...)
	f.servers = append(f.servers, p)
	if err := p.Start(); err != nil {
		return err
	}
	api, err := client.Dial(client.Config{Server: "unix://" + f.socketPath(i)})
	if err != nil {
		return err
	}
	f.apis = append(f.apis, api)
	f.API = f.apis[0]
	return nil
}

// AwaitServer waits until the first server answers.
func (f *Fleet) AwaitServer(ctx context.Context) error { return f.AwaitServerOf(ctx, 0) }

// AwaitServerOf waits until one server answers, and knows the one that leads if
// that is another one.
func (f *Fleet) AwaitServerOf(ctx context.Context, i int) error {
	return f.await(ctx, "the server to answer", func(ctx context.Context) (bool, error) {
		_, err := f.apis[i].Host.List(ctx, &godwitv1.ListHostsRequest{})
		if fleet.CodeOf(err) == fleet.Unavailable {
			return false, nil
		}
		return err == nil, err
	}, f.servers[i])
}
