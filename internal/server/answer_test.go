package server

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// creationCase is one kind of creation: the request of an id, or another one
// with the same.
type creationCase struct {
	name string
	do   func(id string, another bool) (proto.Message, error)
}

// creations needs host h1 that runs web1, and a network blue.
func (f *testFleet) creations() []creationCase {
	pick := func(another bool, names ...string) string {
		if another {
			return names[1]
		}
		return names[0]
	}
	ctx := f.t.Context()
	return []creationCase{
		{"vm", func(id string, another bool) (proto.Message, error) {
			return f.vms.Create(ctx, &godwitv1.CreateVMRequest{Name: "new", Spec: smallSpec("blue"), Host: pick(another, "h1", "h2"), RequestId: id})
		}},
		{"network", func(id string, another bool) (proto.Message, error) {
			return f.networks.Create(ctx, &godwitv1.CreateNetworkRequest{Network: &godwitv1.Network{Name: pick(another, "red", "green")}, RequestId: id})
		}},
		{"endpoint", func(id string, another bool) (proto.Message, error) {
			return f.networks.Attach(ctx, &godwitv1.AttachEndpointRequest{
				Network: "blue", Endpoint: &godwitv1.Endpoint{Name: "gw", Host: "h1", Device: pick(another, "eth1", "eth2")}, RequestId: id,
			})
		}},
		{"token", func(id string, another bool) (proto.Message, error) {
			return f.hosts.CreateToken(ctx, &godwitv1.CreateTokenRequest{Host: pick(another, "h7", "h8"), RequestId: id})
		}},
		{"migration", func(id string, another bool) (proto.Message, error) {
			return f.moves.Create(ctx, &godwitv1.CreateMigrationRequest{Vm: "web1", Reason: pick(another, "one", "two"), RequestId: id})
		}},
	}
}

// A request whose answer was lost can be sent again: it was done once, and the
// answer is that of the first time, whichever server gives it.
func TestRequestsAreDoneOnce(t *testing.T) {
	f := newFleet(t)
	h1, _ := f.join("h1", roomy), f.join("h2", roomy)
	f.network("blue", "10.20.0.0/24")
	f.running(h1, "web1")
	first := map[string]proto.Message{}
	for _, c := range f.creations() {
		answer, err := c.do("id-"+c.name, false)
		if err != nil {
			t.Fatalf("%s: %s", c.name, describe(err))
		}
		first[c.name] = answer
	}
	f.stop()
	f.start()
	for _, c := range f.creations() {
		answer, err := c.do("id-"+c.name, false)
		if err != nil || !proto.Equal(answer, first[c.name]) {
			t.Errorf("%s again: %v, %s\nfirst %v", c.name, answer, describe(err), first[c.name])
		}
		_, err = c.do("id-"+c.name, true)
		if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "id-"+c.name+": another request had this id") {
			t.Errorf("another %s: %s", c.name, describe(err))
		}
		// Without an id it is a new request, which finds what the first has made.
		_, err = c.do("", false)
		if c.name != "token" && (err == nil || strings.Contains(err.Error(), "id-")) {
			t.Errorf("%s without an id: %v", c.name, err)
		}
	}
	if list, err := f.moves.List(t.Context(), &godwitv1.ListMigrationsRequest{}); err != nil || len(list.GetMigrations()) != 1 {
		t.Errorf("migrations: %v, %v", list, err)
	}
}

// An answer has the version that the record got with it.
func TestVersionOfAnAnswer(t *testing.T) {
	f := newFleet(t)
	request := &godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec(), Stopped: true, RequestId: "one"}
	for range 2 {
		if got, want := f.create(request).GetVersion(), f.vm("web1").GetVersion(); got != want {
			t.Errorf("the answer is of version %d, the record of %d", got, want)
		}
	}
	// What has become of it since is not the request's doing.
	if err := call(f.vms.Delete(t.Context(), &godwitv1.DeleteVMRequest{Name: "web1"})); err != nil {
		t.Fatal(err)
	}
	f.create(request)
	if err := call(f.vms.Get(t.Context(), &godwitv1.GetVMRequest{Name: "web1"})); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("a request sent again has brought back what was deleted: %v", err)
	}
}

func TestRequestIDs(t *testing.T) {
	f := newFleet(t)
	f.join("h1")
	create := func(id, name string, dry bool) error {
		return call(f.vms.Create(t.Context(), &godwitv1.CreateVMRequest{Name: name, Spec: smallSpec(), RequestId: id, ValidateOnly: dry}))
	}
	for id, valid := range map[string]bool{
		strings.Repeat("x", 128): true, "A-Za.z_0": true,
		strings.Repeat("x", 129): false, "a b": false, "a/b": false, "ä": false, "a\n": false,
	} {
		err := call(f.networks.Create(t.Context(), &godwitv1.CreateNetworkRequest{Network: &godwitv1.Network{Name: "x"}, RequestId: id}))
		fields := fieldsOf(err)
		if invalid := fleet.CodeOf(err) == fleet.Invalid && len(fields) == 1 && fields[0].Path == "request_id"; invalid == valid {
			t.Errorf("id %q: %s", id, describe(err))
		}
		if err := call(f.networks.Delete(t.Context(), &godwitv1.DeleteNetworkRequest{Name: "x"})); valid && err != nil {
			t.Error(err)
		}
	}
	// What failed, or was only tried, has not used its id up.
	if err := create("one", "No!", false); fleet.CodeOf(err) != fleet.Invalid {
		t.Errorf("a bad name: %v", err)
	}
	for _, dry := range []bool{true, false, true} {
		name := "web1"
		if dry {
			name = "web2"
		}
		if err := create("one", name, dry); err != nil {
			t.Errorf("validate only %t: %v", dry, err)
		}
	}
	// An id is one request's, of whatever kind.
	err := call(f.hosts.CreateToken(t.Context(), &godwitv1.CreateTokenRequest{Host: "h7", RequestId: "one"}))
	if fleet.CodeOf(err) != fleet.Conflict || fleet.HintOf(err) == "" {
		t.Errorf("another kind of request: %v", err)
	}
}

// Of the same request many times at once, to two servers, one does it and all
// have its answer.
func TestTwinsOfARequest(t *testing.T) {
	one := newFleet(t)
	two := &testFleet{t: t, dir: t.TempDir(), store: one.store}
	two.start(func(c *Config) { c.Socket = filepath.Join(one.dir, "two.sock") })
	one.network("blue", "10.20.0.0/24")
	const each = 4
	answers := make(chan *godwitv1.CreateVMResponse, 2*each)
	var group sync.WaitGroup
	for _, f := range []*testFleet{one, two} {
		for range each {
			group.Go(func() {
				answer, err := f.vms.Create(t.Context(), &godwitv1.CreateVMRequest{
					Name: "web1", Spec: smallSpec("blue"), Stopped: true, RequestId: "one",
				})
				if err != nil {
					t.Error(describe(err))
				}
				answers <- answer
			})
		}
	}
	group.Wait()
	first := <-answers
	for range 2*each - 1 {
		if answer := <-answers; !proto.Equal(answer, first) {
			t.Errorf("one has %v, another %v", first, answer)
		}
	}
}

// The store may do what was asked and its word be lost: what was kept tells.
func TestLostWordOfTheStore(t *testing.T) {
	f := newFleet(t)
	tables := f.server.tables
	request := &godwitv1.CreateNetworkRequest{RequestId: "one"}
	unknown := &fleet.Error{Code: fleet.Unavailable, Op: "commit", Err: store.ErrOutcomeUnknown}
	ask := func(done bool) (*godwitv1.CreateNetworkResponse, error) {
		return once(t.Context(), tables, "test", request, new(godwitv1.CreateNetworkResponse),
			func(response *godwitv1.CreateNetworkResponse, version int64) { response.Network.Version = version },
			func(r receipt) (*godwitv1.CreateNetworkResponse, int64, error) {
				conditions, ops, err := r.keep(&godwitv1.CreateNetworkResponse{Network: &godwitv1.Network{Name: "made"}})
				if err == nil && done {
					_, err = tables.store.Commit(t.Context(), conditions, ops...)
				}
				if err != nil {
					t.Error(err)
				}
				return nil, 0, unknown
			})
	}
	if _, err := ask(false); !errors.Is(err, store.ErrOutcomeUnknown) {
		t.Errorf("it was not done: %v", err)
	}
	answer, err := ask(true)
	if err != nil || answer.GetNetwork().GetName() != "made" || answer.GetNetwork().GetVersion() == 0 {
		t.Errorf("it was done: %v, %v", answer, err)
	}
}
