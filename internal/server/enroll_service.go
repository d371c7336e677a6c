package server

import (
	"context"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/store"
)

// enrollService gives certificates.
type enrollService struct{ server *Server }

// Enroll spends a token for a certificate. The token is spent even when the
// answer is lost on the way: a new one is cheap, a token that works twice is
// not.
func (e enrollService) Enroll(ctx context.Context, request *godwitv1.EnrollRequest) (*godwitv1.EnrollResponse, error) {
	host := fleet.HostName(request.GetHost())
	if err := fleet.CheckName(request.GetHost()); err != nil {
		return nil, invalidField("enrol", "host "+request.GetHost(), "host", err.Error())
	}
	if err := checkRequest(request.GetCertificateRequest()); err != nil {
		return nil, err
	}
	token, err := pki.ParseToken(request.GetToken())
	if err != nil {
		return nil, err
	}
	if err := e.spend(ctx, token, host); err != nil {
		return nil, err
	}
	id := pki.Identity{Kind: pki.Host, Name: string(host)}
	cert, authority, err := e.server.signRequest(request.GetCertificateRequest(), id, pki.Names{}, pki.DefaultValidity)
	if err != nil {
		return nil, err
	}
	if err := e.server.forgetMachine(ctx, host); err != nil {
		return nil, err
	}
	e.server.log.Info("host enrolled", "host", host)
	return &godwitv1.EnrollResponse{Certificate: cert, Authority: authority}, nil
}

func (e enrollService) spend(ctx context.Context, token pki.Token, host fleet.HostName) error {
	tokens, now := e.server.tables.tokens, time.Now()
	entry, err := tokens.Get(ctx, token.Hash())
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return err
	}
	// The zero record of an unknown token is refused by Verify, too.
	if err := entry.Value.Verify(token, host, now); err != nil {
		return err
	}
	entry.Value.UsedAt = now
	_, err = e.server.tables.store.Commit(ctx, store.If(tokens.At(entry.Name, entry.Version)), tokens.Put(entry.Name, entry.Value))
	if fleet.CodeOf(err) == fleet.Conflict {
		return &fleet.Error{
			Code: fleet.Denied, Op: "enrol", Subject: "host " + string(host),
			Cause: "the token was used already", Hint: "make a new token for this host",
		}
	}
	return err
}

// forgetMachine lets whatever machine has enrolled under a name be that host:
// the token is the operator's word for it.
func (s *Server) forgetMachine(ctx context.Context, name fleet.HostName) error {
	hosts := s.tables.hosts
	for range store.MaxConflicts {
		entry, err := hosts.Get(ctx, string(name))
		if fleet.CodeOf(err) == fleet.NotFound {
			return nil
		}
		if err != nil {
			return err
		}
		entry.Value.Machine = ""
		_, err = s.tables.store.Commit(ctx, store.If(hosts.At(entry.Name, entry.Version)), hosts.Put(entry.Name, entry.Value))
		if fleet.CodeOf(err) != fleet.Conflict {
			return err
		}
	}
	return tooManyConflicts("enrol", "host "+string(name))
}

// Renew answers the caller's present identity with a new certificate.
func (e enrollService) Renew(ctx context.Context, request *godwitv1.RenewRequest) (*godwitv1.RenewResponse, error) {
	if err := checkRequest(request.GetCertificateRequest()); err != nil {
		return nil, err
	}
	id, validity := callerOf(ctx).identity, pki.DefaultValidity
	switch id.Kind {
	case pki.Admin, pki.User:
		validity = adminValidity
	case pki.Server:
		return nil, &fleet.Error{Code: fleet.Denied, Op: "renew certificate", Subject: id.String(),
			Cause: "servers sign their own certificates"}
	}
	cert, authority, err := e.server.signRequest(request.GetCertificateRequest(), id, pki.Names{}, validity)
	if err != nil {
		return nil, err
	}
	return &godwitv1.RenewResponse{Certificate: cert, Authority: authority}, nil
}

func invalidField(op, subject, path, problem string) error {
	return &fleet.Error{
		Code: fleet.Invalid, Op: op, Subject: subject, Cause: "the request is not valid",
		Fields: []fleet.FieldError{{Path: path, Problem: problem}},
	}
}
