package wire

import (
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

func seed(f *testing.F, messages ...proto.Message) {
	f.Helper()
	for _, message := range messages {
		text, err := proto.Marshal(message)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte{})
	f.Add([]byte("\x0a\xff\xff\xff\xff\x0f"))
}

// checkStored demands that what was decoded can be stored and read again.
func checkStored[T any](t *testing.T, value T) {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatalf("it cannot be stored: %v", err)
	}
	var again T
	if err := json.Unmarshal(text, &again); err != nil {
		t.Errorf("it cannot be read again: %v", err)
	}
}

func FuzzVM(f *testing.F) {
	seed(f, &godwitv1.VM{Name: "web1", Spec: &godwitv1.VMSpec{
		Cpus: -1, MemoryBytes: 1<<64 - 1, Ports: []*godwitv1.Port{{Ips: []string{"10.0.0.1", "nowhere"}}}, Boot: &godwitv1.Boot{},
	}})
	f.Fuzz(func(t *testing.T, text []byte) {
		message := &godwitv1.VM{}
		if proto.Unmarshal(text, message) != nil {
			return
		}
		vm, version, err := DecodeVM(message)
		if err != nil || !message.GetCreated().IsValid() {
			return
		}
		checkStored(t, vm)
		EncodeVM(vm, version)
	})
}

func FuzzHost(f *testing.F) {
	seed(f, &godwitv1.Host{
		Name: "h1", Address: "10.0.0.1", MemoryBytes: 1<<64 - 1, PeerPort: 1 << 20,
		Networks: &godwitv1.HostNetworks{Bridges: []*godwitv1.Bridge{{Name: "br0", Mtu: -1, FiltersVlans: true}, nil}, UnderlayMtu: 1500},
	})
	f.Fuzz(func(t *testing.T, text []byte) {
		message := &godwitv1.Host{}
		if proto.Unmarshal(text, message) != nil {
			return
		}
		host, status, err := DecodeHost(message)
		if err != nil {
			return
		}
		EncodeHost(host, status)
		host.Seen = host.Seen.UTC().Truncate(0)
		if message.GetSeen() == nil || message.GetSeen().IsValid() {
			checkStored(t, host)
		}
	})
}

func FuzzNetwork(f *testing.F) {
	seed(f, &godwitv1.Network{Name: "blue", Subnets: []string{"10.0.0.0/8", "x"}, Endpoints: []*godwitv1.Endpoint{{Ips: []string{"::1"}}}},
		&godwitv1.Network{Name: "prod", Bridge: "br0", Vlan: 1<<32 - 1})
	f.Fuzz(func(t *testing.T, text []byte) {
		message := &godwitv1.Network{}
		if proto.Unmarshal(text, message) != nil {
			return
		}
		network, _, err := DecodeNetwork(message)
		if err == nil {
			checkStored(t, network)
		}
	})
}

// FuzzStrictJSON reads requests as a browser or a script may send them.
func FuzzStrictJSON(f *testing.F) {
	for _, text := range []string{`{"vm":"web1"}`, `{"vm":1}`, `{"policy":{"bandwidthMax":"1e3"}}`, `{`, ``, `null`, `{"vm":"\ud800"}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		message := &godwitv1.CreateMigrationRequest{}
		if (strictJSON{"json"}).Unmarshal(text, message) != nil {
			return
		}
		if _, err := CompactJSON(message); err != nil {
			t.Error(err)
		}
	})
}

func FuzzError(f *testing.F) {
	seed(f, &godwitv1.ErrorDetail{Code: "conflict", Cause: "x", RetryAfterMs: 1<<63 - 1, Lines: []string{"a"}})
	f.Fuzz(func(t *testing.T, text []byte) {
		message := &godwitv1.ErrorDetail{}
		if proto.Unmarshal(text, message) != nil {
			return
		}
		err := decodeError(message, nil)
		if err.RetryAfter < 0 || err.RetryAfter > maxRetryAfter {
			t.Errorf("retry after %v", err.RetryAfter)
		}
		if fleet.CodeOf(ToConnect(err)) == "" {
			t.Error("an error without a code")
		}
	})
}
