package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// Lives of enrolment tokens.
const (
	defaultTokenLife = time.Hour
	maxTokenLife     = 30 * 24 * time.Hour
)

// hostService is the API of hosts.
type hostService struct{ server *Server }

func (h hostService) Get(ctx context.Context, request *godwitv1.GetHostRequest) (*godwitv1.GetHostResponse, error) {
	entry, err := h.server.getHost(ctx, "show", request.GetName())
	if err != nil {
		return nil, err
	}
	host, err := h.show(ctx, entry)
	return &godwitv1.GetHostResponse{Host: host}, err
}

func (h hostService) List(ctx context.Context, request *godwitv1.ListHostsRequest) (*godwitv1.ListHostsResponse, error) {
	entries, token, err := readPage(ctx, h.server.tables.hosts, request.GetPage(), nil)
	if err != nil {
		return nil, err
	}
	response := &godwitv1.ListHostsResponse{NextToken: token}
	for _, entry := range entries {
		host, err := h.show(ctx, entry)
		if err != nil {
			return nil, err
		}
		response.Hosts = append(response.Hosts, host)
	}
	return response, nil
}

// show adds to a host's record what is reserved on it and whether it is up: then
// it is heard of at this very moment.
func (h hostService) show(ctx context.Context, entry store.Entry[fleet.Host]) (*godwitv1.Host, error) {
	ledger, err := h.server.tables.ledgers.Get(ctx, entry.Name)
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return nil, err
	}
	state := "up"
	switch {
	case !h.server.hub.connected(entry.Value.Name):
		state = "down"
	case entry.Value.Cordoned:
		state = "cordoned"
	}
	if state != "down" {
		entry.Value.Seen = time.Now()
	}
	return wire.EncodeHost(entry.Value, wire.HostStatus{State: state, Reserved: ledger.Value.Sum(), Version: entry.Version}), nil
}

func (h hostService) Cordon(ctx context.Context, request *godwitv1.CordonHostRequest) (*godwitv1.CordonHostResponse, error) {
	entry, err := h.server.cordon(ctx, "cordon", request, func() error { return nil })
	if err != nil {
		return nil, err
	}
	host, err := h.show(ctx, entry)
	return &godwitv1.CordonHostResponse{Host: host}, err
}

// cordon sets or lifts the mark on a host for op, if allowed lets it.
func (s *Server) cordon(ctx context.Context, op string, request *godwitv1.CordonHostRequest, allowed func() error) (store.Entry[fleet.Host], error) {
	hosts := s.tables.hosts
	for range store.MaxConflicts {
		entry, err := s.getHost(ctx, op, request.GetName())
		if err != nil {
			return entry, err
		}
		if err := checkVersion(op, "host", entry, request.GetVersion()); err != nil {
			return entry, err
		}
		if err := allowed(); err != nil {
			return entry, err
		}
		entry.Value.Cordoned = request.GetCordoned()
		revision, err := s.tables.store.Commit(ctx, store.If(hosts.At(entry.Name, entry.Version)), hosts.Put(entry.Name, entry.Value))
		if fleet.CodeOf(err) == fleet.Conflict {
			continue
		}
		entry.Version = revision
		return entry, err
	}
	return store.Entry[fleet.Host]{}, tooManyConflicts(op, "host "+request.GetName())
}

// changeHost has edit change a host's record, as long as held holds. Nothing is written if
// edit says that it has changed nothing.
func (t tables) changeHost(ctx context.Context, op string, name fleet.HostName, edit func(*fleet.Host) (changed bool), held ...store.Condition) error {
	for range store.MaxConflicts {
		entry, err := t.hosts.Get(ctx, string(name))
		if err != nil || !edit(&entry.Value) {
			return err
		}
		conditions := append(store.If(t.hosts.At(entry.Name, entry.Version)), held...)
		_, err = t.store.Commit(ctx, conditions, t.hosts.Put(entry.Name, entry.Value))
		if fleet.CodeOf(err) != fleet.Conflict {
			return err
		}
	}
	return tooManyConflicts(op, "host "+string(name))
}

// CreateToken makes a token. Its text exists in the answer only; if that is kept
// for a request's id, then beside the key of the authority, which can do more.
func (h hostService) CreateToken(ctx context.Context, request *godwitv1.CreateTokenRequest) (*godwitv1.CreateTokenResponse, error) {
	return once(ctx, h.server.tables, "make token", request, new(godwitv1.CreateTokenResponse),
		func(*godwitv1.CreateTokenResponse, int64) {}, // it has no version
		func(r receipt) (*godwitv1.CreateTokenResponse, int64, error) { return h.createToken(ctx, request, r) })
}

func (h hostService) createToken(ctx context.Context, request *godwitv1.CreateTokenRequest, r receipt) (*godwitv1.CreateTokenResponse, int64, error) {
	id, err := memberOf("make token", request.GetKind(), request.GetHost())
	if err != nil {
		return nil, 0, err
	}
	if id.Kind == pki.Host && h.server.hub.connected(fleet.HostName(request.GetHost())) {
		return nil, 0, &fleet.Error{
			Code: fleet.Conflict, Op: "make token", Subject: "host " + request.GetHost(),
			Cause: "it is up: another machine with a token of that name would take its place",
			Hint:  "choose another name, or stop godwit agent there first",
		}
	}
	life := defaultTokenLife
	if seconds := request.GetValidSeconds(); seconds != 0 {
		if seconds < 0 || seconds > int64(maxTokenLife/time.Second) {
			return nil, 0, invalidField("make token", id.String(), "valid_seconds", "must be between 1 and 2592000, which is 30 days")
		}
		life = time.Duration(seconds) * time.Second
	}
	token := pki.NewToken(h.server.authority.Fingerprint())
	record := pki.TokenRecord{Hash: token.Hash(), Kind: id.Kind, Host: fleet.HostName(request.GetHost()), ExpiresAt: time.Now().Add(life)}
	response := &godwitv1.CreateTokenResponse{Token: token.Text(), Expires: timestamppb.New(record.ExpiresAt)}
	free, kept, err := r.keep(response)
	if err != nil {
		return nil, 0, err
	}
	tokens := h.server.tables.tokens
	ops := append([]store.Op{tokens.Put(record.Hash, record)}, kept...)
	revision, err := h.server.tables.store.Commit(ctx, append(free, tokens.Absent(record.Hash)), ops...)
	return response, revision, err
}

func (s *Server) getHost(ctx context.Context, op, name string) (store.Entry[fleet.Host], error) {
	return lookUp(ctx, s.tables.hosts, op, "host", name)
}

func (s *Server) getVM(ctx context.Context, op, name string) (store.Entry[fleet.VM], error) {
	return lookUp(ctx, s.tables.vms, op, "vm", name)
}

func (s *Server) getNetwork(ctx context.Context, op, name string) (store.Entry[fleet.Network], error) {
	return lookUp(ctx, s.tables.networks, op, "network", name)
}

// lookUp reads a record that a user has named.
func lookUp[T any](ctx context.Context, table store.Table[T], op, noun, name string) (store.Entry[T], error) {
	if name == "" {
		return store.Entry[T]{}, invalidField(op, noun, "name", "is missing")
	}
	entry, err := table.Get(ctx, name)
	if fleet.CodeOf(err) == fleet.NotFound {
		err = &fleet.Error{
			Code: fleet.NotFound, Op: op, Subject: noun + " " + name,
			Cause: "there is no " + noun + " of that name", Hint: "godwit " + noun + " list shows them all",
		}
	}
	return entry, err
}
