package witness

import (
	"math"
	"net"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

func TestArgsSurviveTheCommandLine(t *testing.T) {
	want := Args{
		Ports: []Port{
			{MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, Addresses: []netip.Prefix{
				netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("2001:db8::2/64"),
			}},
			{MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 2}},
		},
		Load: Load{
			BytesPerSecond: 10 << 20, SetMiB: 32, Pattern: Zipf, Exponent: 0.99, ZeroPercent: 50,
			On: time.Second, Off: 2 * time.Second, For: time.Minute, Then: &Load{BytesPerSecond: Unthrottled, SetMiB: 64},
		},
		Disk: Disk{Rate: 100},
		Run:  []string{"/usr/bin/server", "--port", "1"},
	}
	got, err := ParseArgs(want.CommandLine())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s\n got %+v\nwant %+v: %v", want, got, want, err)
	}
	if got, err := ParseArgs(Args{}.CommandLine()); err != nil || !reflect.DeepEqual(got, Args{}) {
		t.Errorf("nothing to do became %+v: %v", got, err)
	}
}

func TestArgsRefused(t *testing.T) {
	for _, line := range []string{
		"godwit.port=nonsense", "godwit.port=52:54:00:00:00:01,10.0.0.300/24", "godwit.port=52:54:00:00:00:01,10.0.0.1",
		"godwit.load=", "godwit.load=10", `godwit.load={"set_mib":1,"speed":2}`, "godwit.load={}{}", "godwit.load={},", `godwit.load={"set_mib":-1}`,
		"godwit.disk=fast", "godwit.disk=10001", "godwit.unheard=of", "godwit.run=", "godwit.run=server",
	} {
		if args, err := ParseArgs("quiet " + line + " panic=-1"); err == nil {
			t.Errorf("%s was taken as %+v", line, args)
		}
	}
}

func TestLoadValid(t *testing.T) {
	for _, l := range []Load{
		{},
		{SetMiB: 5},
		{BytesPerSecond: Unthrottled, SetMiB: 1, Pattern: Sequential, ZeroPercent: 100},
		{Kind: Redis, BytesPerSecond: 5, SetMiB: 5, Pattern: Zipf, Exponent: 0.5},
		{Kind: Compile, BytesPerSecond: Unthrottled, On: 1, Off: 1, For: 1, Then: &Load{Kind: Compile}},
		phases(MaxPhases),
	} {
		if err := l.Valid(); err != nil {
			t.Errorf("%s: %v", l.JSON(), err)
		}
	}
	for _, l := range []Load{
		{BytesPerSecond: 5},
		{BytesPerSecond: -2, SetMiB: 5},
		{BytesPerSecond: MaxLoadRate + 1, SetMiB: 5},
		{SetMiB: MaxSetMiB + 1},
		{SetMiB: 5, ZeroPercent: 101},
		{SetMiB: 5, Pattern: "backwards"},
		{SetMiB: 5, Pattern: Zipf},
		{SetMiB: 5, Pattern: Zipf, Exponent: math.NaN()},
		{SetMiB: 5, Pattern: Hot, Exponent: 1},
		{SetMiB: 5, On: time.Second},
		{SetMiB: 5, On: -time.Second, Off: time.Second},
		{SetMiB: 5, For: time.Second},
		{SetMiB: 5, Then: &Load{}},
		{SetMiB: 5, For: 2 * MaxLoadPeriod, Then: &Load{}},
		{SetMiB: 5, For: time.Second, Then: &Load{SetMiB: -1}},
		{SetMiB: 5, For: time.Second, Then: &Load{Kind: Redis}},
		{Kind: "chess"},
		{Kind: Compile, BytesPerSecond: 5},
		{Kind: Compile, BytesPerSecond: Unthrottled, SetMiB: 5},
		phases(MaxPhases + 1),
		forever(),
	} {
		if l.Valid() == nil {
			t.Errorf("%+v is valid", l)
		}
	}
}

func phases(n int) (l Load) {
	for range n - 1 {
		l = Load{For: 1, Then: &Load{For: l.For, Then: l.Then}}
	}
	return l
}

func forever() Load {
	l := Load{For: 1}
	l.Then = &l
	return l
}

func TestPacketSurvivesTheWire(t *testing.T) {
	for _, want := range []Packet{
		{Flow: 1, Sequence: 2, Sent: 3},
		{Reply: true, Flow: 1 << 63, Sequence: 5, Sent: -6, Counter: 7, Clock: 8, Boot: 9, Nonce: 10, Written: 11, WrittenNonce: 12},
	} {
		b := make([]byte, HeaderSize)
		want.Marshal(b)
		if got, err := ParsePacket(b); err != nil || got != want {
			t.Errorf("got %+v, want %+v: %v", got, want, err)
		}
		if _, err := ParsePacket(b[:HeaderSize-1]); err == nil {
			t.Error("half a header is a packet")
		}
		b[0] ^= 1
		if _, err := ParsePacket(b); err == nil {
			t.Error("a stranger's bytes are a packet")
		}
	}
}

// Two copies of a guest draw different nonces once they have done one thing at
// different times, and a guest never draws one again.
func TestNoncesOfCopies(t *testing.T) {
	var one Nonces
	one.Draw(1)
	other := one
	if one.Draw(2) == other.Draw(3) {
		t.Error("two copies have drawn the same")
	}
	if one.Draw(4) == other.Draw(4) {
		t.Error("two copies have become the same")
	}
	if drawn := one.Draw(5); one.Draw(5) == drawn {
		t.Error("one was drawn twice")
	}
}

// Any single byte that is wrong makes a disk record none.
func TestRecordThatIsTorn(t *testing.T) {
	want := Record{Sequence: 1, Boot: 2, Clock: 3, Counter: 4, Nonce: 5}
	block := make([]byte, BlockSize)
	want.Marshal(block)
	if got, err := ParseRecord(block); err != nil || got != want {
		t.Fatalf("got %+v, want %+v: %v", got, want, err)
	}
	for i := range block {
		block[i] ^= 0x10
		if got, err := ParseRecord(block); err == nil {
			t.Errorf("wrong byte %d is not seen: %+v", i, got)
		}
		block[i] ^= 0x10
	}
	next := make([]byte, BlockSize)
	Record{Sequence: 2, Boot: 2}.Marshal(next)
	copy(block[BlockSize/2:], next[BlockSize/2:])
	if _, err := ParseRecord(block); err == nil {
		t.Error("half of one record and half of the next are a record")
	}
}

func TestLedger(t *testing.T) {
	for name, test := range map[string]struct {
		sequences []uint64
		want      Flow
		lost      uint64
	}{
		"in order":       {[]uint64{1, 2, 3}, Flow{First: 1, Highest: 3, Received: 3}, 0},
		"joined late":    {[]uint64{1 << 40, 1<<40 + 1}, Flow{First: 1 << 40, Highest: 1<<40 + 1, Received: 2}, 0},
		"lost":           {[]uint64{1, 5}, Flow{First: 1, Highest: 5, Received: 2}, 3},
		"doubled":        {[]uint64{1, 2, 2, 1, 3}, Flow{First: 1, Highest: 3, Received: 5, Duplicated: 2}, 0},
		"other order":    {[]uint64{2, 1, 4, 3}, Flow{First: 1, Highest: 4, Received: 4, Reordered: 2}, 0},
		"far ahead":      {[]uint64{1, 100_000, 100_000}, Flow{First: 1, Highest: 100_000, Received: 3, Duplicated: 1}, 99_998},
		"place is taken": {[]uint64{1, 1 + windowSize, 1 + windowSize}, Flow{First: 1, Highest: 1 + windowSize, Received: 3, Duplicated: 1}, windowSize - 1},
	} {
		ledger := NewLedger()
		for i, sequence := range test.sequences {
			if counter := ledger.Note(9, sequence, 0); counter != uint64(i)+1 {
				t.Errorf("%s: packet %d was counted as %d", name, i+1, counter)
			}
		}
		test.want.Flow = 9
		flows := ledger.Flows()
		if len(flows) != 1 || flows[0] != test.want || flows[0].Lost() != test.lost {
			t.Errorf("%s: got %+v, want %+v and %d lost", name, flows, test.want, test.lost)
		}
	}
}

func TestLedgerForgetsTheFlowLongestIdle(t *testing.T) {
	ledger := NewLedger()
	for flow := range uint64(maxFlows) {
		ledger.Note(flow, 1, time.Duration(flow))
	}
	ledger.Note(0, 2, maxFlows)
	ledger.Note(1000, 1, maxFlows+1)
	flows := ledger.Flows()
	if len(flows) != maxFlows || flows[0].Flow != 0 || flows[1].Flow != 2 || flows[maxFlows-1].Flow != 1000 {
		t.Errorf("%d flows, of which flow 1 should be the only one gone: %+v", len(flows), flows)
	}
}
