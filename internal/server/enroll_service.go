package server

import (
	"cmp"
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
	id, err := memberOf("enrol", request.GetKind(), request.GetHost())
	if err != nil {
		return nil, err
	}
	if err := checkRequest(request.GetCertificateRequest()); err != nil {
		return nil, err
	}
	token, err := pki.ParseToken(request.GetToken())
	if err != nil {
		return nil, err
	}
	if err := e.spend(ctx, token, id); err != nil {
		return nil, err
	}
	cert, authority, err := e.server.signRequest(request.GetCertificateRequest(), id, pki.Names{}, pki.DefaultValidity)
	if err != nil {
		return nil, err
	}
	if id.Kind == pki.Host {
		if err := e.server.forgetMachine(ctx, fleet.HostName(id.Name)); err != nil {
			return nil, err
		}
	}
	e.server.log.Info("enrolled", "member", id.String())
	return &godwitv1.EnrollResponse{Certificate: cert, Authority: authority}, nil
}

// memberOf reads what is to be enrolled from a request.
func memberOf(op, kind, name string) (pki.Identity, error) {
	id := pki.Identity{Kind: cmp.Or(pki.Kind(kind), pki.Host), Name: name}
	if err := fleet.CheckName(name); err != nil {
		return id, invalidField(op, id.String(), "host", err.Error())
	}
	if id.Kind != pki.Host && id.Kind != pki.Volume {
		return id, invalidField(op, id.String(), "kind", `must be "host" or "volume"`)
	}
	return id, nil
}

func (e enrollService) spend(ctx context.Context, token pki.Token, id pki.Identity) error {
	tokens, now := e.server.tables.tokens, time.Now()
	entry, err := tokens.Get(ctx, token.Hash())
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return err
	}
	// The zero record of an unknown token is refused by Verify, too.
	if err := entry.Value.Verify(token, id, now); err != nil {
		return err
	}
	entry.Value.UsedAt = now
	_, err = e.server.tables.store.Commit(ctx, store.If(tokens.At(entry.Name, entry.Version)), tokens.Put(entry.Name, entry.Value))
	if fleet.CodeOf(err) == fleet.Conflict {
		return &fleet.Error{
			Code: fleet.Denied, Op: "enrol", Subject: id.String(),
			Cause: "the token was used already", Hint: "make a new token for this " + string(id.Kind),
		}
	}
	return err
}

// forgetMachine lets whatever machine has enrolled under a name be that host:
// the token is the operator's word for it.
func (s *Server) forgetMachine(ctx context.Context, name fleet.HostName) error {
	err := s.tables.changeHost(ctx, "enrol", name, func(host *fleet.Host) bool {
		known := host.Machine != ""
		host.Machine = ""
		return known
	})
	if fleet.CodeOf(err) == fleet.NotFound {
		return nil
	}
	return err
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
