package wire

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	"godwit.dev/godwit/internal/fleet"
)

const elsewhere = "give the address of a running one (--server, GODWIT_SERVER)"

// unreached says why a call never got an answer from a Godwit server, and what
// to do about it.
func unreached(coded *connect.Error, server string) error {
	network, ok := errors.AsType[*net.OpError](coded)
	if ok && network.Op == "remote error" { // an alert of TLS
		return &fleet.Error{
			Code:  fleet.Denied,
			Cause: theServer(server) + " refused the connection",
			Hint:  "give a certificate and key that the server's authority signed and that have not expired (--cert, --key)",
			Err:   network.Err,
		}
	}
	broken := errors.Is(coded, io.EOF) || errors.Is(coded, io.ErrUnexpectedEOF) || ok || brokenOff(coded)
	if broken && coded.Code() != connect.CodeUnavailable {
		return &fleet.Error{
			Code:  fleet.Unavailable,
			Cause: "the connection to " + theServer(server) + " broke",
			Hint:  "what was asked for may have been done: look before doing it again",
		}
	}
	if coded.Code() != connect.CodeUnavailable {
		code := fleet.Internal
		if coded.Code() == connect.CodeUnimplemented { // it answers, and does not know the call
			code = fleet.Unsupported
		}
		return &fleet.Error{
			Code:    code,
			Op:      "call",
			Subject: theServer(server),
			Cause:   coded.Message(),
			Hint:    "is a Godwit server of the same version listening there?",
		}
	}
	e := &fleet.Error{
		Code:  fleet.Unavailable,
		Cause: "cannot reach " + theServer(server),
		Hint:  "start one with `godwit server`, or " + elsewhere,
		Err:   errors.New(rootCause(coded)),
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](coded); ok {
		e.Hint = "give the certificate of the server's own authority (--ca, GODWIT_CA) and call it by a name in its certificate"
		if invalid, ok := errors.AsType[x509.CertificateInvalidError](coded); ok && invalid.Reason == x509.Expired {
			e.Hint = "see that the clocks of this machine and of the server's are right"
		}
		return e
	}
	if errors.Is(coded, syscall.EACCES) {
		e.Code = fleet.Denied
		e.Hint = "only the server's own user may use its socket: run this as root, or " + elsewhere
	}
	return e
}

func theServer(address string) string {
	if address == "" {
		return "the server"
	}
	return "the server at " + address
}

// rootCause gives the text of the innermost error, which names the cause
// without the URL and the layers that http puts around it.
func rootCause(err error) string {
	for {
		below := errors.Unwrap(err)
		if below == nil {
			return err.Error()
		}
		err = below
	}
}

// brokenOff tells by its text what net/http exports no error for: a connection
// that fell silent, and a stream that a server, or one on the way to it, gave up
// in the middle.
func brokenOff(coded *connect.Error) bool {
	text := coded.Message()
	return strings.HasSuffix(text, "http2: client connection lost") || strings.Contains(text, "INTERNAL_ERROR; received from peer")
}
