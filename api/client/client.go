package client

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/wire"
)

// DefaultServer is where a server listens for clients of its own machine.
const DefaultServer = "unix:///run/godwit/server.sock"

// DefaultPort is the TCP port of an https address that names none.
const DefaultPort = "7443"

const (
	dialTimeout      = 5 * time.Second
	idlePing         = 5 * time.Second // silence after which the peer is probed
	pingTimeout      = 5 * time.Second // silence after a probe that ends a connection
	maxMessageBytes  = 16 << 20
	idleConnLifetime = 90 * time.Second
)

// Client holds a client of each service, of one server or of several that are
// one fleet's.
type Client struct {
	VM        godwitv1connect.VMServiceClient
	Host      godwitv1connect.HostServiceClient
	Network   godwitv1connect.NetworkServiceClient
	Migration godwitv1connect.MigrationServiceClient
	Enroll    godwitv1connect.EnrollServiceClient
	Agent     godwitv1connect.AgentServiceClient
	Server    godwitv1connect.ServerServiceClient
	// VolumeServers is what the fleet's server knows of them; see VolumeServer.
	VolumeServers godwitv1connect.VolumeServerServiceClient

	doer *http.Client
}

// Dial gives a client of the server that config names, or of several of which
// any can answer. It reads the files that config names but does not call the
// server. Its errors are a *fleet.Error.
func Dial(config Config) (*Client, error) {
	doer, base, options, err := config.prepare()
	if err != nil {
		return nil, err
	}
	return &Client{
		VM:        godwitv1connect.NewVMServiceClient(doer, base, options),
		Host:      godwitv1connect.NewHostServiceClient(doer, base, options),
		Network:   godwitv1connect.NewNetworkServiceClient(doer, base, options),
		Migration: godwitv1connect.NewMigrationServiceClient(doer, base, options),
		Enroll:    godwitv1connect.NewEnrollServiceClient(doer, base, options),
		Agent:     godwitv1connect.NewAgentServiceClient(doer, base, options),
		Server:    godwitv1connect.NewServerServiceClient(doer, base, options),
		doer:      doer,

		VolumeServers: godwitv1connect.NewVolumeServerServiceClient(doer, base, options),
	}, nil
}

// Close drops the connections that no call is using.
func (c *Client) Close() { c.doer.CloseIdleConnections() }

// Peer is a client of a host's agent, for those of other hosts and for servers.
type Peer struct {
	godwitv1connect.PeerServiceClient
	Console godwitv1connect.ConsoleServiceClient
	Measure godwitv1connect.MeasureServiceClient
	doer    *http.Client
}

// DialPeer is Dial for the agent that config names as its server.
func DialPeer(config Config) (*Peer, error) {
	doer, base, options, err := config.prepare()
	if err != nil {
		return nil, err
	}
	return &Peer{
		PeerServiceClient: godwitv1connect.NewPeerServiceClient(doer, base, options),
		Console:           godwitv1connect.NewConsoleServiceClient(doer, base, options),
		Measure:           godwitv1connect.NewMeasureServiceClient(doer, base, options),
		doer:              doer,
	}, nil
}

// Close drops the connections that no call is using.
func (p *Peer) Close() { p.doer.CloseIdleConnections() }

// VolumeServer is a client of a volume server.
type VolumeServer struct {
	godwitv1connect.VolumeServiceClient
	doer *http.Client
}

// DialVolumeServer is Dial for the volume server that config names as its
// server.
func DialVolumeServer(config Config) (*VolumeServer, error) {
	doer, base, options, err := config.prepare()
	if err != nil {
		return nil, err
	}
	return &VolumeServer{godwitv1connect.NewVolumeServiceClient(doer, base, options), doer}, nil
}

// Close drops the connections that no call is using.
func (v *VolumeServer) Close() { v.doer.CloseIdleConnections() }

// prepare gives what every service's client is made of.
func (c Config) prepare() (*http.Client, string, connect.ClientOption, error) {
	doer, base, err := c.doer()
	return doer, base, connect.WithClientOptions(
		connect.WithInterceptors(wire.ClientInterceptor(c.server())),
		connect.WithReadMaxBytes(maxMessageBytes),
	), err
}

// doer gives what carries calls, and the URL that all their paths begin with.
func (c Config) doer() (*http.Client, string, error) {
	if servers := Servers(c.server()); len(servers) > 1 {
		routes, err := c.several(servers)
		return &http.Client{Transport: routes}, "https://godwit", err // each call gets the address of its server
	}
	transport, base, err := c.transport()
	if err != nil {
		return nil, "", err
	}
	if address, secure := strings.CutPrefix(base, "https://"); secure {
		return &http.Client{Transport: explained{Transport: transport, address: address}}, base, nil
	}
	return &http.Client{Transport: transport}, base, nil
}

// transport gives what carries calls to the server, and the URL that all their
// paths begin with.
func (c Config) transport() (*http.Transport, string, error) {
	server, err := url.Parse(c.server())
	if err != nil {
		return nil, "", c.invalid("it is not a URL")
	}
	transport := &http.Transport{
		Protocols:           new(http.Protocols),
		HTTP2:               &http.HTTP2Config{SendPingTimeout: idlePing, PingTimeout: pingTimeout},
		TLSHandshakeTimeout: dialTimeout,
		IdleConnTimeout:     idleConnLifetime,
	}
	dialer := &net.Dialer{Timeout: cmp.Or(c.DialTimeout, dialTimeout)}
	switch server.Scheme {
	case "unix":
		if server.Host != "" || !filepath.IsAbs(server.Path) {
			return nil, "", c.invalid("the path of a socket must be absolute: three slashes after the colon")
		}
		transport.Protocols.SetUnencryptedHTTP2(true)
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", server.Path)
		}
		return transport, "http://godwit", nil
	case "https":
		if server.Hostname() == "" || (server.Path != "" && server.Path != "/") {
			return nil, "", c.invalid("it must be a host and a port, without a path")
		}
		host := server.Host
		if server.Port() == "" {
			host = net.JoinHostPort(server.Hostname(), DefaultPort)
		}
		transport.TLSClientConfig, err = c.tls()
		transport.Protocols.SetHTTP2(true)
		transport.DialContext = dialer.DialContext
		if c.Dial != nil {
			transport.DialContext = c.Dial
		}
		return transport, "https://" + host, err
	}
	return nil, "", c.invalid(fmt.Sprintf("%q is not a way to reach a server", server.Scheme))
}

func (c Config) invalid(cause string) error {
	return &fleet.Error{
		Code:    fleet.Invalid,
		Op:      "use server",
		Subject: c.server(),
		Cause:   cause,
		Hint:    "write it as " + DefaultServer + " or https://host:" + DefaultPort,
	}
}
