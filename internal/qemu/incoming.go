package qemu

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

// Incoming says where a target listens, and to whom.
type Incoming struct {
	Listen   netip.Addr
	CredsDir string // ca-cert.pem, server-cert.pem, server-key.pem; "" for no TLS
	// PeerName is the subject of the one certificate that may connect, spelled
	// as gnutls_x509_crt_get_dn does: the attributes in the order in which the
	// certificate has them, so O=fleet,CN=h1 for what crypto/x509 writes of
	// pkix.Name{Organization: "fleet", CommonName: "h1"}. RFC 4514 and Go's
	// pkix.Name.String have them the other way round.
	PeerName string
	// Connections that carry the memory beside the main one (multifd); with 1,
	// or 0, the main one carries everything.
	Connections int
}

// Names of the QEMU objects that a migration needs.
const (
	credsObject = "godwit-tls"
	authzObject = "godwit-peer"
)

// capabilities are switched on at both ends, where QEMU has them.
var capabilities = [...]struct {
	name     qmp.MigrationCapability
	optional bool
}{
	{name: qmp.MigrationCapabilityEvents},
	{name: qmp.MigrationCapabilityReturnPath},
	{name: qmp.MigrationCapabilityPauseBeforeSwitchover},
	// A target takes its disks at cont and not before: without it QEMU 7.2
	// locks the images while the source may still run on.
	{name: qmp.MigrationCapabilityLateBlockActivate, optional: true},
	// The target refuses the memory of any other VM.
	{name: qmp.MigrationCapabilityValidateUUID, optional: true},
}

// Listen makes a target ready, and gives the TCP port at which it waits for its
// source. It can be called once in an instance's life.
func (i *Instance) Listen(ctx context.Context, in Incoming) (port uint16, err error) {
	if err := i.listen(ctx, in); err != nil {
		return 0, i.wrap("listen for a migration", err)
	}
	return i.Port(ctx)
}

// Port gives the TCP port at which a target waits for its source; an error if
// it has not been told to listen.
func (i *Instance) Port(ctx context.Context) (uint16, error) {
	now, err := qmp.QueryMigrate(ctx, i.monitor)
	if err != nil {
		return 0, i.wrap("listen for a migration", err)
	}
	for _, address := range now.SocketAddress {
		if address.Type == qmp.SocketAddressTypeInet && address.Port != nil {
			number, err := strconv.ParseUint(*address.Port, 10, 16)
			return uint16(number), i.wrap("listen for a migration", err)
		}
	}
	return 0, i.wrap("listen for a migration", fmt.Errorf("QEMU does not say at which port it listens"))
}

func (i *Instance) listen(ctx context.Context, in Incoming) error {
	parameters := qmp.MigrateSetParametersArgs{TLSCreds: new(""), TLSAuthz: new("")}
	if in.CredsDir != "" {
		if in.PeerName == "" {
			return &fleet.Error{Code: fleet.Invalid, Cause: "with TLS the peer must be named"}
		}
		if err := i.replaceObject(ctx, credentials(in.CredsDir, "server")); err != nil {
			return err
		}
		peer := qmp.ObjectAddArgs{ID: authzObject, QOMType: "authz-simple", Identity: &in.PeerName}
		if err := i.replaceObject(ctx, peer); err != nil {
			return err
		}
		parameters.TLSCreds, parameters.TLSAuthz = new(credsObject), new(authzObject)
	}
	if err := i.setUp(ctx, in.Connections, parameters); err != nil {
		return err
	}
	uri := "tcp:" + net.JoinHostPort(in.Listen.String(), "0")
	args := qmp.MigrateIncomingArgs{URI: &uri}
	if i.can.Schema.HasArgument("migrate-incoming", "exit-on-error") {
		args.ExitOnError = new(false) // it stays to be asked for the error
	}
	return qmp.MigrateIncoming(ctx, i.monitor, args)
}

// setUp switches the capabilities on and sets the parameters.
func (i *Instance) setUp(ctx context.Context, connections int, parameters qmp.MigrateSetParametersArgs, more ...qmp.MigrationCapabilityStatus) error {
	var on qmp.MigrateSetCapabilitiesArgs
	for _, c := range capabilities {
		if !c.optional || i.can.Schema.HasMigrationCapability(string(c.name)) {
			on.Capabilities = append(on.Capabilities, qmp.MigrationCapabilityStatus{Capability: c.name, State: true})
		}
	}
	// That of an earlier migration may still be on.
	on.Capabilities = append(on.Capabilities, qmp.MigrationCapabilityStatus{Capability: qmp.MigrationCapabilityMultifd, State: connections > 1})
	on.Capabilities = append(on.Capabilities, more...)
	if connections > 1 {
		parameters.MultifdChannels = new(int64(connections))
	}
	if err := qmp.MigrateSetCapabilities(ctx, i.monitor, on); err != nil {
		return err
	}
	return qmp.MigrateSetParameters(ctx, i.monitor, parameters)
}

// credentials describes an end of TLS that demands a certificate of its peer.
func credentials(dir, endpoint string) qmp.ObjectAddArgs {
	return qmp.ObjectAddArgs{ID: credsObject, QOMType: "tls-creds-x509", Dir: &dir, Endpoint: &endpoint, VerifyPeer: new(true)}
}

// replaceObject makes the object anew, so that credentials are read again.
func (i *Instance) replaceObject(ctx context.Context, object qmp.ObjectAddArgs) error {
	present, err := qmp.QOMList(ctx, i.monitor, qmp.QOMListArgs{Path: "/objects"})
	if err != nil {
		return err
	}
	for _, one := range present {
		if one.Name != object.ID {
			continue
		}
		if err := qmp.ObjectDel(ctx, i.monitor, qmp.ObjectDelArgs{ID: object.ID}); err != nil {
			return err
		}
	}
	return qmp.ObjectAdd(ctx, i.monitor, object)
}
