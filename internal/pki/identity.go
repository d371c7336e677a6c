package pki

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"strings"

	"godwit.dev/godwit/internal/fleet"
)

// Kind says what a member of the fleet is.
type Kind string

// The kinds.
const (
	Host   Kind = "host"   // an agent, and the QEMU processes it runs
	Server Kind = "server" // the control plane
	Volume Kind = "volume" // a volume server
	Admin  Kind = "admin"  // may do everything
	User   Kind = "user"   // a client of the API
)

const (
	trustDomain  = "godwit"
	organization = "godwit"
)

// Identity is what a certificate says about its holder.
type Identity struct {
	Kind Kind
	Name string // as of fleet.CheckName
}

// String is "host h1".
func (i Identity) String() string { return string(i.Kind) + " " + i.Name }

// URI is the identity as certificates state it.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: trustDomain, Path: "/" + string(i.Kind) + "/" + i.Name}
}

func (i Identity) check() error {
	switch i.Kind {
	case Host, Server, Volume, Admin, User:
		return fleet.CheckName(i.Name)
	}
	return fmt.Errorf("%q is no kind of identity", string(i.Kind))
}

// subject is the distinguished name: two attributes, in this order. Only
// hosts have the plain organization, so that a user named like a host is not
// taken for it where nothing but the subject is compared.
func (i Identity) subject() pkix.Name {
	o := organization
	if i.Kind != Host {
		o += "-" + string(i.Kind)
	}
	return pkix.Name{Organization: []string{o}, CommonName: i.Name}
}

// DistinguishedName is the subject as gnutls_x509_crt_get_dn spells it, which
// is what QEMU's authz objects compare: the attributes in the order in which
// the certificate has them, not in the reverse order of RFC 4514.
func (i Identity) DistinguishedName() string {
	s := i.subject()
	return "O=" + s.Organization[0] + ",CN=" + s.CommonName
}

// FromConnectionState gives the identity of the peer of a connection that was
// made with a configuration of this package. Denied when the peer showed no
// certificate or one that is not of this fleet's authority.
func FromConnectionState(state tls.ConnectionState) (Identity, error) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, denied("the peer showed no certificate",
			"enrol this host, or give the client a certificate", nil)
	}
	// Filled only by a handshake that verified the certificate.
	if len(state.VerifiedChains) == 0 {
		return Identity{}, denied("the peer's certificate was not verified", "", nil)
	}
	return identityOf(state.PeerCertificates[0])
}

func identityOf(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 {
		return Identity{}, denied("the certificate states no single identity", "", nil)
	}
	uri := cert.URIs[0]
	kind, name, _ := strings.Cut(strings.TrimPrefix(uri.Path, "/"), "/")
	id := Identity{Kind: Kind(kind), Name: name}
	if err := id.check(); err != nil || uri.String() != id.URI().String() {
		return Identity{}, denied(fmt.Sprintf("the certificate states the identity %s, which is none of this fleet", uri), "", err)
	}
	return id, nil
}

func denied(cause, hint string, err error) error {
	return &fleet.Error{Code: fleet.Denied, Op: "identify peer", Cause: cause, Hint: hint, Err: err}
}

// Expect is what a peer must be. The zero value accepts every member.
type Expect struct {
	Kind Kind   // "" for any
	Name string // "" for any
}

// Check refuses, with Denied, a peer that is not as expected.
func (e Expect) Check(peer Identity) error {
	if (e.Kind == "" || e.Kind == peer.Kind) && (e.Name == "" || e.Name == peer.Name) {
		return nil
	}
	want := strings.TrimSpace(string(e.Kind) + " " + e.Name)
	return denied(fmt.Sprintf("the peer is %v, not %s", peer, want), "", nil)
}
