package store

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"godwit.dev/godwit/internal/fleet"
)

const endpointHint = "write them as https://HOST:2379"

// checkEndpoints refuses what etcd's client would take in silence. It uses TLS
// for all endpoints or for none, as the first one says, so they may not be
// mixed. And plain text stays on this machine: the store holds the key of the
// fleet's authority, and whoever can answer for it owns every VM.
func (c Config) checkEndpoints() error {
	plain := 0
	for _, endpoint := range c.Endpoints {
		u, err := parseEndpoint(endpoint)
		if err != nil {
			return err
		}
		if u.Scheme == "https" {
			continue
		}
		plain++
		if !c.Insecure && !isLoopback(u.Hostname()) {
			return openFailed(fleet.Invalid, endpoint, "http:// would send the fleet's secrets in plain text to another machine",
				"use https:// with certificates; --etcd-insecure allows it where nobody else is on the network", nil)
		}
	}
	where := strings.Join(c.Endpoints, ",")
	switch {
	case plain > 0 && plain < len(c.Endpoints):
		return openFailed(fleet.Invalid, where, "http:// and https:// are mixed", "use https:// for all of them", nil)
	case plain > 0 && c.TLS != nil:
		return openFailed(fleet.Invalid, where, "certificates are given, and http:// does not use them", "use https:// for all endpoints", nil)
	}
	return nil
}

func parseEndpoint(endpoint string) (*url.URL, error) {
	problem := ""
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https":
		problem = "it does not begin with https:// or http://"
	case u.Hostname() == "":
		problem = "it names no host"
	case !isPort(u.Port()):
		problem = "it names no port"
	case u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		problem = "it has more than a host and a port"
	default:
		return u, nil
	}
	// The text of url.Parse's error is left out: it would repeat the endpoint.
	return nil, openFailed(fleet.Invalid, fmt.Sprintf("%q", endpoint), problem, endpointHint, nil)
}

func isPort(text string) bool {
	port, err := strconv.ParseUint(text, 10, 16)
	return err == nil && port != 0
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}
